"""A slot's child process as the supervisor sees it: started, fed, frozen, killed, buried.

One `Child` is one process in one single-worker executor, with sockets, page and output file of its own; a replacement gets
all of them new. Its slot is the only one that signals it. Starting and burying run in the process thread (see `Nursery`),
because multiprocessing's bookkeeping of children must not be entered by two threads at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.thread import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any, Final

import msgspec

from tasuki_mp import wire
from tasuki_mp.child import guard
from tasuki_mp.child import main as child_main
from tasuki_mp.child.application import SPEC_VARIABLE, AppSpec
from tasuki_mp.child.main import Setting
from tasuki_mp.job import Lease
from tasuki_mp.statefile import StateReader
from tasuki_mp.supervisor import clock, crew
from tasuki_mp.supervisor.probe import Cpu
from tasuki_mp.supervisor.usage import NOWHERE, Place
from tasuki_mp.wire import StopReason

Key = tuple[int, int]
_STOP_BITS: Final[dict[StopReason, int]] = {
    "shutdown": wire.STOP_SHUTDOWN,
    "timeout": wire.STOP_TIMEOUT,
    "cancel": wire.STOP_CANCEL,
}
_NO_LEAK_REPORT: Final = "ignore:resource_tracker:UserWarning"
EXECUTOR_ENDS_FOR: Final = 2.0
"""Seconds for the executor of a dead child to end; it takes milliseconds."""
UNKNOWN_EXIT: Final = 255
"""What multiprocessing says when it could not learn how a child ended."""
_SHELLS_SIGNAL: Final = 128
COLLECT_EVERY: Final = 8
"""Burials between two garbage collections: a broken executor is a cycle that holds two pipes until it is collected."""


class Death(msgspec.Struct, frozen=True):
    """How a child's process ended: by a signal, with a code, or in a way nobody can know any more."""

    signal: str = ""
    exit_code: int | None = None

    def __str__(self) -> str:
        if self.signal:
            return f"killed by {self.signal}"
        if self.exit_code is None:
            return "ended with an unknown status"
        name = _exit_name(self.exit_code)
        return f"ended with exit code {self.exit_code}{f' ({name})' if name else ''}"


def _exit_name(code: int) -> str:
    """What a code is called in sysexits.h, or which signal a shell means by it; empty for any other."""
    if code > _SHELLS_SIGNAL and code - _SHELLS_SIGNAL in list(signal.Signals):
        return f"as shells say {signal.Signals(code - _SHELLS_SIGNAL).name}"
    return next((name for name in dir(os) if name.startswith("EX_") and getattr(os, name) == code != 0), "")


class Nursery:
    """Starts and buries children, one step at a time, in a thread of its own."""

    def __init__(self, spec: AppSpec, setting: Callable[[int], Setting]) -> None:
        """`setting` says what is arranged for a child of that slot."""
        self.spec = spec
        self._setting = setting
        if _NO_LEAK_REPORT not in sys.warnoptions:
            # Handed on to the resource tracker. It cleans up after a supervisor that had to leave at once, and would
            # tell the terminal about it as if something were wrong.
            sys.warnoptions.append(_NO_LEAK_REPORT)
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tasuki_mp.child.preload"])
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="processes")
        self._buried = 0

    def start(self, slot: int) -> Child:
        """A new child, its hello still to come. In the process thread. Raises OSError when no process can be had."""
        crew.require_room()
        with guard.held_back():
            return self._start(slot)

    def _start(self, slot: int) -> Child:
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs.extend(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
            (send_jobs, take_jobs), (outcomes, send_outcomes) = pairs
            page = RawArray("Q", wire.PAGE_WORDS)
            executor = ProcessPoolExecutor(
                max_workers=1,
                mp_context=self._context,
                initializer=child_main.initialize,
                initargs=(take_jobs, send_outcomes, page, self.spec, self._setting(slot)),
            )
            os.environ[SPEC_VARIABLE] = msgspec.json.encode(self.spec).decode()
            try:
                future = executor.submit(child_main.slot_main)
            except (EOFError, ConnectionError) as error:
                imported = self.spec.app if self.spec.is_preloaded else ""
                raise _unborn(_death_of_forkserver(), imported) from error
            finally:
                os.environ.pop(SPEC_VARIABLE, None)
        except BaseException:
            for pair in pairs:
                for sock in pair:
                    sock.close()
            raise
        send_outcomes.close()
        for sock in (send_jobs, outcomes):
            sock.setblocking(False)
        child = Child(slot, executor, future, send_jobs, take_jobs, outcomes, page)
        child.process = next(iter((executor._processes or {}).values()), None)
        return child

    def bury_unborn(self, child: Child) -> RuntimeError:
        """The same as `bury` for one that is gone before its hello; what there is to say about it."""
        death = self.bury(child)
        return _unborn(death, "" if self.spec.is_preloaded else self.spec.app)

    def adopt(self, child: Child) -> None:
        """Take hold of the child's Process object, for its exit code; at its hello, in the process thread."""
        child.process = next((p for p in multiprocessing.active_children() if p.pid == child.pid), None)

    def bury(self, child: Child) -> Death:
        """Wait for the executor of a dead or returning child to end and say how the process did. In the process thread."""
        # In a thread that can be left behind: an executor whose process died while it wrote to the executor's own pipe
        # waits for the rest of that for ever.
        ending = threading.Thread(target=child.executor.shutdown, daemon=True)
        try:
            ending.start()
            ending.join(EXECUTOR_ENDS_FOR)
        except RuntimeError:  # no thread can be had
            child.executor.shutdown(wait=False)
            if child.process is not None:
                child.process.join(EXECUTOR_ENDS_FOR)
        self._buried += 1
        if self._buried % COLLECT_EVERY == 0:
            gc.collect()
        code = child.process.exitcode if child.process is not None else None
        return Death() if code is None or code == UNKNOWN_EXIT else _death(code)


def _death_of_forkserver() -> Death:
    """How the forkserver ended that broke off; its end stays to be noticed by multiprocessing, which starts another."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # nobody else knows it
    try:
        pidfd = os.pidfd_open(pid)
        try:
            select.select([pidfd], [], [], EXECUTOR_ENDS_FOR)
        finally:
            os.close(pidfd)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, TypeError):  # there never was one, or it is gone already
        end = None
    if end is None:
        return Death()
    return _death(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)


def _death(code: int) -> Death:
    """What an exit code means, or the number of a signal with a minus before it."""
    if code < 0:
        return Death(signal=signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}")
    return Death(exit_code=code)


def _unborn(death: Death, imported: str) -> RuntimeError:
    """What to say of a process that ended before there was a child; `imported` is the application, if that was its task."""
    return RuntimeError(
        f"the process died ({death}) {f'while it imported {imported}' if imported else 'before it was ready'}"
    )


class Child:
    """One child process. `inflight` are the leases whose frames were sent and whose outcomes have not come, in order."""

    def __init__(
        self,
        slot: int,
        executor: ProcessPoolExecutor,
        future: Future[None],
        send_jobs: socket.socket,
        take_jobs: socket.socket,
        outcomes: socket.socket,
        page: Any,
    ) -> None:
        self.slot = slot
        self.executor = executor
        self.future = future
        self.outcomes = outcomes
        self.process: BaseProcess | None = None
        self.pid = 0
        self.pidfd = -1
        self.output = -1
        self.state: StateReader | None = None
        self.stacks = -1
        self.inflight: OrderedDict[Key, Lease] = OrderedDict()
        self.jobs_run = 0
        self.place = NOWHERE
        """Where its jobs run, with the application's version as this child imported it."""
        self.born_at = clock.now()
        self.held = 0
        """Bytes beyond its size at hello that its last job has left in it."""
        self.is_replaced = False
        """Whether another child is on its way to take this one's place."""
        self.is_killed = False
        """Whether the supervisor has killed it, for whatever reason but its job's."""
        self.is_dead = False
        self.is_fixed = False
        """Whether a library in it can't change its number of threads any more, as a job of several units would want."""
        self.turn = asyncio.Lock()
        """Held while its stacks are written down."""
        self.is_slow = False
        """Whether its running job takes so much longer than expected that nothing should wait behind it."""
        self._send_jobs = send_jobs
        self._take_jobs = take_jobs
        self._page = page
        self._receive = wire.Receiver(outcomes)
        self._take = wire.Receiver(take_jobs)

    def hello(self, hello: wire.Hello, fds: tuple[int, ...]) -> None:
        """The child's first frame has come, with its descriptors."""
        self.pid = hello.pid
        self.place = Place(hello.pid, self.slot, hello.app_version)
        self.pidfd, self.output, state, bell, self.stacks = fds
        self.state = StateReader(state, bell)

    def send(self, lease: Lease, extras: wire.Extras | None) -> bool:
        """Send the frame of this lease's job; False when the pipe is full, or the child dead."""
        frame = wire.RunJob(
            lease.id,
            lease.lease_no,
            lease.handler,
            lease.queue,
            lease.attempt,
            lease.max_attempts,
            lease.payload,
            extras,
        )
        try:
            wire.send_job(self._send_jobs, wire.pack(frame))
        except OSError:
            return False
        self.inflight[lease.key] = lease
        return True

    def ask_to_stop(self) -> None:
        """Ask the child to close its resources and return after whatever is in its pipe."""
        # A full pipe or a dead child: whoever waits for its end has a deadline and kills.
        with contextlib.suppress(OSError):
            wire.send_job(self._send_jobs, wire.pack(wire.Stop()))

    def receive(self) -> tuple[wire.FromChild, tuple[int, ...]]:
        """The next frame of the child; raises like `wire.Receiver.from_child`."""
        return self._receive.from_child()

    def take_back(self) -> list[Lease]:
        """Leases whose frames the child had not taken yet, in order; nobody else will run them now."""
        taken: list[Lease] = []
        while True:
            try:
                frame = self._take.to_child(socket.MSG_DONTWAIT)
            except (BlockingIOError, wire.ClosedError):
                return taken
            if isinstance(frame, wire.RunJob):
                lease = self.inflight.pop((frame.id, frame.lease_no), None)
                if lease is not None:
                    taken.append(lease)

    def entered_at(self, key: Key) -> float | None:
        """When the handler of this lease's job was entered (CLOCK_BOOTTIME, seconds); None if it has not been.

        Stays true after the job's end until the next job begins, also when the child is dead.
        """
        page = self._page
        if (page[wire.PAGE_JOB], page[wire.PAGE_LEASE_NO]) != key:
            return None
        return float(page[wire.PAGE_STARTED]) / 1e9

    def is_in_handler(self, key: Key) -> bool:
        """Whether exactly this lease's handler runs now. Certain only while the child is stopped."""
        return self.entered_at(key) is not None and bool(self._page[wire.PAGE_IN_HANDLER])

    def cpu_before(self) -> Cpu:
        """CPU time that this child and what it had waited for had used when its running job's handler was entered."""
        return Cpu(self._page[wire.PAGE_USER] / 1e6, self._page[wire.PAGE_SYSTEM] / 1e6)

    def running(self) -> tuple[Lease, float] | None:
        """The lease whose handler runs, and since when."""
        page = self._page
        lease = self.inflight.get((page[wire.PAGE_JOB], page[wire.PAGE_LEASE_NO]))
        return None if lease is None else (lease, float(page[wire.PAGE_STARTED]) / 1e9)

    @property
    def is_heard(self) -> bool:
        """Whether every outcome has been received that was sent before the running job began."""
        running = self.running()
        return running is None or running[0] is next(iter(self.inflight.values()))

    def ask_stop(self, key: Key, reason: StopReason) -> None:
        """Let `ctx.should_stop` become true in this lease's handler, which has been sent to this child.

        Ask again until the job has ended: the page has room for one lease, and a request for the job before it, which
        had ended already, may have taken its place. A shutdown is meant for every job of the child.
        """
        page, bit = self._page, _STOP_BITS[reason]
        if bit != wire.STOP_SHUTDOWN and (page[wire.PAGE_STOP_JOB], page[wire.PAGE_STOP_LEASE_NO]) != key:
            # In this order, so that the child never sees a reason beside a lease that it was not meant for.
            page[wire.PAGE_STOP] &= wire.STOP_SHUTDOWN
            page[wire.PAGE_STOP_JOB], page[wire.PAGE_STOP_LEASE_NO] = key
        page[wire.PAGE_STOP] |= bit

    def was_interrupted(self, reason: StopReason) -> bool:
        """Whether an exception was raised for that reason in the running handler; it is once at most for each."""
        return bool(self._page[wire.PAGE_INTERRUPTED] & _STOP_BITS[reason])

    def ask_for_awaits(self) -> None:
        """Let the next signal of `signals.interrupt` add to the file of stacks where the tasks of its event loop wait."""
        self._page[wire.PAGE_ASK] += 1

    @property
    def has_told_awaits(self) -> bool:
        """Whether they are in the file by now. They will not be while C code holds the interpreter."""
        return bool(self._page[wire.PAGE_TOLD] == self._page[wire.PAGE_ASK])

    def close(self) -> None:
        """Close every descriptor that the supervisor had for this child."""
        for sock in (self._send_jobs, self._take_jobs, self.outcomes):
            sock.close()
        for fd in (self.pidfd, self.output, self.stacks):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.output = self.stacks = -1
        if self.state is not None:
            self.state.close()
            self.state = None
