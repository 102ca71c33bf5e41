"""The child's main loop: take a job frame, run its handler, send how it ended.

Runs in the only thread of a slot's child, as the one endless task of that slot's executor. Talks to the supervisor alone:
job frames come in on one socket, outcome frames go out on another, and a page of shared memory says what is running.
"""

from __future__ import annotations

import contextvars
import faulthandler
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable
from ctypes import Array, c_uint64
from functools import partial
from typing import Any, Final, assert_never

import msgspec

from tasuki_mp import handlers, wire
from tasuki_mp.child import answer, application, guard, joblog
from tasuki_mp.child.backstop import Backstop
from tasuki_mp.child.board import Board
from tasuki_mp.child.calling import runnable
from tasuki_mp.child.context import Context
from tasuki_mp.child.each import call_each, is_list
from tasuki_mp.child.interrupts import Interrupts
from tasuki_mp.child.meter import Meter
from tasuki_mp.child.output import Output
from tasuki_mp.child.resources import Resources
from tasuki_mp.child.scratch import Scratch
from tasuki_mp.child.threads import ThreadBudget, limit_native_threads
from tasuki_mp.child.tidy import Tidiness
from tasuki_mp.followups import FollowUps
from tasuki_mp.handlers import Handler
from tasuki_mp.job import JobRow
from tasuki_mp.outcome import AskedSnooze, Outcome, Returned

Page = Array[c_uint64]
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_LOST_SUPERVISOR: Final = os.EX_SOFTWARE
"""Exit code of a child whose sockets are gone."""


class Setting(msgspec.Struct, frozen=True):
    """What the supervisor arranges for a child, whatever application runs in it."""

    nofile: int
    """The soft limit of open files that the supervisor had before it raised its own."""
    scratch: str = ""
    """The folder below which jobs' private folders are made; empty when there is none."""
    variables: dict[str, str] = {}
    """Of its slot, for its environment."""
    writes_bytecode: bool = True
    """Compiled modules are told apart by their source's second and size, too coarse for code that is being edited."""


class Line(msgspec.Struct, frozen=True):
    """What a child is given when it is started."""

    jobs: socket.socket
    outcomes: socket.socket
    page: Page
    spec: application.AppSpec
    setting: Setting


_line: Line | None = None


def initialize(
    jobs: socket.socket, outcomes: socket.socket, page: Page, spec: application.AppSpec, setting: Setting
) -> None:
    """The executor's initializer: the guard first, before any user code can be imported here."""
    global _line  # noqa: PLW0603  an executor's initializer has no other way to hand something to its task
    guard.protect(nofile=setting.nofile)
    os.environ.update(setting.variables)
    sys.dont_write_bytecode = sys.dont_write_bytecode or not setting.writes_bytecode
    _line = Line(jobs, outcomes, page, spec, setting)


def slot_main() -> None:
    """The executor's only task: run jobs until the supervisor says stop, or something calls for a fresh child."""
    if _line is None:
        raise RuntimeError("slot_main runs in a process that initialize() has prepared")
    child = Child(_line)
    try:
        child.serve()
    except Exception:  # noqa: BLE001  whatever it is, this process can't be trusted with its jobs any more
        # The executor would keep the process alive, and its supervisor would wait for this job for ever.
        traceback.print_exc()
        os._exit(os.EX_SOFTWARE)


_NONE_ASKED_FOR: Final = FollowUps()
"""Of handlers that have no way to ask for follow-up jobs: nobody is ever given it."""


class Child:
    """One child: its sockets, its application, its resources."""

    def __init__(self, line: Line) -> None:
        self._outcomes = line.outcomes
        self._page = line.page
        self._receiver = wire.Receiver(line.jobs)
        limit_native_threads()
        os.environ.pop("TASUKI_DSN", None)
        app = application.import_application(line.spec)
        self._max_result = app.max_result
        self._handlers = app.registry.handlers if app.registry else {}
        self._resources = Resources(app.registry.resources if app.registry else {})
        self._seen: set[str] = set()
        error = app.error
        if app.registry and not error:
            error = self._resources.build_eager()
        self._output = Output()
        # Where a crash is reported even if the job has led its standard error elsewhere.
        faulthandler.enable(file=self._output.fd)
        joblog.install()
        self._board = Board(self._tell)
        self._interrupts = Interrupts(line.page)
        self._backstop = Backstop()
        self._scratch = Scratch(line.setting.scratch)
        self._threads = ThreadBudget()
        self._tidiness = Tidiness()
        self._meter = Meter(line.page)
        pidfd = os.pidfd_open(os.getpid())
        hello = wire.Hello(
            pid=os.getpid(),
            forkserver_pid=os.getppid(),
            handlers=[handler.info for handler in self._handlers.values()],
            schedules=app.registry.schedule_infos() if app.registry and not error else [],
            app_version=app.version,
            import_error=error,
            import_seconds=app.seconds,
            leftovers=list(app.leftovers),
        )
        state, stacks = self._board.file, self._interrupts.stacks
        descriptors = wire.Descriptors(pidfd, self._output.fd, state.fd, state.bell, stacks)
        wire.send_hello(self._outcomes, hello, descriptors)
        os.close(pidfd)

    def serve(self) -> None:
        """Run jobs, one after the other."""
        while True:
            try:
                frame = self._receiver.to_child()
            except wire.ClosedError:
                os._exit(_LOST_SUPERVISOR)
            match frame:
                case wire.RunJob():
                    retire = self._run(frame)
                    if retire:
                        self._resources.close()
                        self._tell(wire.pack(wire.Retiring(self._tidiness.is_littered)))
                        if self._tidiness.is_littered:
                            _wait_to_be_killed()
                        return
                case wire.Stop():
                    self._resources.close()
                    return
                case _:
                    assert_never(frame)

    def _run(self, job: wire.RunJob) -> str:
        """Run one job and send its outcome; returns why this child should retire, or an empty string."""
        page = self._page
        page[wire.PAGE_RECEIVED] += 1
        started = time.clock_gettime_ns(_CLOCK)
        # The order matters to whoever reads the page of a dead child: this job had started once both words are its own.
        page[wire.PAGE_STARTED] = started
        page[wire.PAGE_JOB] = job.id
        page[wire.PAGE_LEASE_NO] = job.lease_no
        self._meter.start(started)
        page[wire.PAGE_IN_HANDLER] = 1
        handlers.running_job = f"{job.handler} (job {job.id})"
        joblog.begin(job)
        self._tidiness.before(started)
        if job.handler not in self._seen:
            self._seen.add(job.handler)
            self._tidiness.first_run(units=_units(job))
        handler = self._handlers.get(job.handler)
        followups = _NONE_ASKED_FOR
        rows: list[JobRow] = []
        spool: int | None = None
        retire = ""
        timeout = job.extras.limits.timeout if job.extras is not None else None
        if timeout is not None:
            self._backstop.arm(timeout + wire.BACKSTOP_SECONDS)
        try:
            if handler is not None and handler.may_follow_up:
                followups = FollowUps()
            outcome = self._call(handler, job, followups) if handler else answer.to_unknown(job.handler)
            if followups.count and isinstance(outcome, Returned | AskedSnooze):
                rows, spool = followups.take()
        except BaseException as error:  # noqa: BLE001  a handler may raise anything, SystemExit and worse included
            outcome = self._interrupts.outcome(error, job, started) or answer.to_error(error, handler, job.attempt)
            if isinstance(error, MemoryError):
                retire = "its job ran out of memory"
        if timeout is not None:
            self._backstop.disarm()
        handlers.running_job = None
        joblog.end()
        page[wire.PAGE_IN_HANDLER] = 0
        ended = time.clock_gettime_ns(_CLOCK)
        used = self._meter.stop(ended)
        self._scratch.clear()
        output_end = self._output.settle()
        checkpoint = self._board.take((job.id, job.lease_no))
        retire = self._tidiness.verdict(started_ns=started, ended_ns=ended) or self._interrupts.retire or retire
        is_fixed = self._threads.is_fixed
        if is_fixed and _units(job) > 1:
            retire = retire or "a library keeps the number of threads that its job had"
        recycle = self._tidiness.wish
        if checkpoint and isinstance(outcome, Returned):
            checkpoint = ""  # nothing follows that could want it
        frame = wire.Finished(
            *(job.id, job.lease_no, outcome, started, ended, used, output_end, retire, checkpoint, is_fixed, rows),
            recycle,
        )
        self._tell(wire.pack(frame), spool=spool)
        if followups.count:
            followups.close()
        return retire

    def _call(self, handler: Handler[..., Any], job: wire.RunJob, followups: FollowUps) -> Outcome:
        cpus = _units(job)
        injected: dict[str, Any] = {}
        for parameter, resource in handler.injections:
            if resource is None:
                injected[parameter] = Context(
                    job_id=job.id,
                    lease_no=job.lease_no,
                    handler=job.handler,
                    queue=job.queue,
                    attempt=job.attempt,
                    max_attempts=job.max_attempts,
                    page=self._page,
                    board=self._board,
                    checkpoint=job.extras.checkpoint if job.extras is not None else None,
                    scratch=self._scratch,
                    cpus=cpus,
                    followups=followups,
                )
            else:
                if not self._resources.is_built(resource):
                    with self._tidiness.sparing():
                        self._resources.build(resource)
                injected[parameter] = self._resources.get(resource)
        function, is_async = runnable(handler, followups)
        enter: Callable[..., Any] = self._interrupts.call_async if is_async else self._interrupts.call
        # In a context of its own, so that no context variable is carried into the next job.
        call = partial(contextvars.copy_context().run, enter, job, function)
        if cpus > 1:
            self._threads.raise_to(cpus)
        try:
            if is_list(job.payload):
                value = call_each(handler, job.payload, injected, call)
            else:
                value = call({**handler.decode(job.payload), **injected})
        finally:
            if cpus > 1:
                self._threads.lower()
        return answer.to_value(value, limit=self._max_result)

    def _tell(self, packet: bytes, *, spool: int | None = None) -> None:
        try:
            wire.send_outcome(self._outcomes, packet, spool=spool)
        except OSError:
            # The job closed our sockets, or the supervisor is gone: nobody can learn anything from this process any more.
            os._exit(_LOST_SUPERVISOR)


def _units(job: wire.RunJob) -> int:
    """How many of the host's units it takes."""
    return job.extras.limits.cpus or 1 if job.extras is not None else 1


def _wait_to_be_killed() -> None:
    """Stand still with everything below this process, so that the supervisor finds the whole tree and kills it."""
    while True:
        select.select([], [], [])
