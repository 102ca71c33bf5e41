"""A real supervisor in a process of its own, that a test can stop at named points of its work.

The program, `python -m tests.support.hooked`, is `tasuki-mp` with hooks: whichever thread reaches a gated point knocks at
the test's socket and stands there until it is let go on. `Supervised` is the test's side of it: the program, its log as
events, its gates.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.program import Program
from tests.support.waiting import TIMEOUT, NotInTimeError

_GATES = "TASUKI_TEST_GATES"
_MUTANT = "TASUKI_TEST_MUTANT"
Event = dict[str, Any]

IN_A_TERMINAL = (
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
    sys.executable,
)
"""Launches the program as the foreground job of a terminal of its own; what it is told (`say`) is typed there."""
ELSEWHERE = (
    "-c",
    "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])",
    *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    sys.executable,
)
"""Launches the program in a pid namespace of its own, as in a container or on another host. Needs to be root."""


class Gate:
    """A thread of the supervisor that stands at a point. It goes on when the test says so, or goes away."""

    def __init__(self, point: str, sock: socket.socket) -> None:
        self.point = point
        self._sock = sock

    def open(self) -> None:
        """Let it go on; the next to come stands here again."""
        self._answer(b"+")

    def remove(self) -> None:
        """Let it go on, and never stop anybody here again."""
        self._answer(b"-")

    def break_down(self) -> None:
        """Let it go on with an error that nobody expects there."""
        self._answer(b"!")

    def close(self) -> None:
        """Go away."""
        self._sock.close()

    def _answer(self, answer: bytes) -> None:
        with self._sock, contextlib.suppress(BrokenPipeError):  # it may have been killed as it stood there
            self._sock.sendall(answer)


class Supervised(Program):
    """`tasuki-mp run` on the database `dsn`, with JSON logs at debug level. Gated are the points that `gates` names.

    With a launcher (arguments for Python) it is that which starts the program; see `IN_A_TERMINAL`.
    """

    def __init__(
        self,
        dsn: str,
        *options: str,
        app: str = "tests.support.door:app",
        procs: int = 1,
        gates: Sequence[str] = (),
        mutant: str = "",
        launcher: Sequence[str] = (),
        env: dict[str, str] | None = None,
        new_session: bool = False,
        leaves_behind: bool = False,
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="gates-")
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(Path(self._folder, "s")))
        self._sock.listen(16)
        self._gates: list[Gate] = []
        self._events: list[Event] = []
        """Seen while another was waited for."""
        self.log: list[str] = []
        """Every line that it has written, as far as it was waited for."""
        gated = json.dumps({"path": str(Path(self._folder, "s")), "points": list(gates)})
        super().__init__(
            *launcher,
            *("-m", "tests.support.hooked", "run", "--app", app, "--procs", str(procs)),
            *("--log-format", "json", "--log-level", "debug", *options),
            env={**(env or {}), "TASUKI_DSN": dsn, _GATES: gated, _MUTANT: mutant},
            new_session=new_session,
            leaves_behind=leaves_behind,
            stderr=subprocess.STDOUT,
        )

    def gate(self, *, timeout: float = TIMEOUT) -> Gate:
        """The next thread that comes to a gate."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        seen = [fd for fd, _ in poll.poll(timeout * 1000)]
        if self._sock.fileno() not in seen:
            why = "the program ended before anybody came" if seen else f"nobody came within {timeout:g} s"
            raise NotInTimeError(f"{why} to a gate; the log:\n{self._tail()}")
        sock, _ = self._sock.accept()
        sock.settimeout(timeout)
        gate = Gate(sock.recv(64).decode(), sock)
        self._gates.append(gate)
        return gate

    def event(self, name: str, *, timeout: float = TIMEOUT, **fields: object) -> Event:
        """The next event of that name with these fields; earlier ones that were passed over can still be asked for."""

        def is_it(event: Event) -> bool:
            return event.get("event") == name and all(event.get(key) == value for key, value in fields.items())

        return self._next(is_it, f"event {name!r} {fields or ''}", timeout)

    def started(self) -> Event:
        """Wait until it works."""
        return self.event("started")

    def wait(self, *, timeout: float = TIMEOUT) -> int:
        """Its exit code, once it has ended."""
        try:
            return super().wait(timeout=timeout)
        except NotInTimeError as error:
            self.signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER set, it says where its threads stand
            raise NotInTimeError(f"{error}; the log:\n{self._tail()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it the signal to stop; its exit code."""
        self.signal(number)
        return self.wait()

    def rest(self) -> list[Event]:
        """Every event that was not asked for, to the end of the log; the program must be about to end."""
        with contextlib.suppress(AssertionError):
            while True:
                self._events.append(self._read_event(TIMEOUT))
        return self._events

    def _next(self, is_it: Callable[[Event], bool], what: str, timeout: float) -> Event:
        for index, event in enumerate(self._events):
            if is_it(event):
                return self._events.pop(index)
        while True:
            try:
                event = self._read_event(timeout)
            except AssertionError as error:  # its end, or the deadline
                raise type(error)(f"{what}: {error}; the log:\n{self._tail()}") from None
            if is_it(event):
                return event
            self._events.append(event)

    def _read_event(self, timeout: float) -> Event:
        while True:
            line = self.line(timeout=timeout)
            self.log.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if isinstance(event, dict):
                    return event

    def _tail(self) -> str:
        with contextlib.suppress(AssertionError):
            while True:
                self.log.append(self.line(timeout=0.1))
        return "\n".join(self.log[-60:])

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        try:
            super().__exit__(kind, _error, _traceback)
        finally:
            if kind is not None:  # for whoever reads what pytest has captured of a test that failed
                print(f"the log of supervisor {self.pid}:\n{self._tail()}")
            for gate in self._gates:
                gate.close()
            self._sock.close()
            shutil.rmtree(self._folder)


@contextmanager
def supervisors(dsn: str, count: int, *options: str, **more: Any) -> Iterator[list[Supervised]]:
    """That many at once, all of them working."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Supervised(dsn, *options, **more)) for _ in range(count)]
        for supervised in started:
            supervised.started()
        yield started


# ── the program ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _break(mutant: str) -> None:
    """Take one safeguard out of the program, for a test that must notice; or confuse it in a way that must not matter."""
    match mutant:
        case "":
            return
        case "no heartbeat while quiescing":
            from tasuki_mp.supervisor.supervisor import Supervisor

            quiesce = Supervisor._quiesce

            async def without_heartbeat(self: Supervisor) -> None:
                await self._flow.heartbeat.stop()
                await quiesce(self)

            Supervisor._quiesce = without_heartbeat  # type: ignore[method-assign]  # that is what a mutant does
        case "no quarantine before rescue":
            from tasuki_mp.supervisor import rescue

            rescue.has_served_quarantine = lambda **_: True
        case "deaf to cancels":
            from tasuki_mp.supervisor.supervisor import Supervisor

            def pass_over(self: Supervisor) -> None:
                return

            Supervisor.cancel_hinted = pass_over  # type: ignore[method-assign]  # that is what a mutant does
        case "an outbox for two":
            from tasuki_mp.supervisor.outbox import Outbox

            setattr(Outbox, "is_full", property(lambda self: len(self) >= 2))  # noqa: B010  mypy knows no other way
        case "all the time for the unborn":
            from tasuki_mp.supervisor import birth

            birth.DISCARD_FOR = 3600.0  # type: ignore[misc]  # longer than a busy machine may stop a test for
        case "wall clock a year ahead":
            import time

            now, now_ns = time.time, time.time_ns
            time.time = lambda: now() + 366 * 86_400
            time.time_ns = lambda: now_ns() + 366 * 86_400 * 10**9
        case "Nursery.bury" | "Slot.stop_job" | "Slot.stack" | "Attic.clear_after":
            from tasuki_mp.supervisor.attic import Attic
            from tasuki_mp.supervisor.child import Nursery
            from tasuki_mp.supervisor.slot import Slot

            owner, _, method = mutant.partition(".")
            _fail_once({"Nursery": Nursery, "Slot": Slot, "Attic": Attic}[owner], method)
        case "no kill works":
            from tasuki_mp.supervisor import supervisor, tree

            def kill_tree(*_: object, **__: object) -> tree.KillReport:
                raise RuntimeError("the test says so")

            tree.kill_tree = kill_tree
            supervisor.KILL_FOR = supervisor.BURY_FOR = 0.5  # type: ignore[misc]  # the test need not wait for longer
        case "a bare host":
            from functools import partial
            from pathlib import Path

            from tasuki_mp.supervisor import footing, tree

            footing.lacks = partial(footing.lacks, root=Path("/nowhere"))
            tree._HAS_LISTS = False  # type: ignore[misc]  # as on another kernel
        case _:
            raise ValueError(f"no such mutant: {mutant}")


def _fail_once(owner: type, method: str) -> None:
    """Let the first call of that method raise what nobody foresees."""
    work = getattr(owner, method)

    def fail(*_: object) -> None:
        setattr(owner, method, work)
        raise RuntimeError("the test says so")

    setattr(owner, method, fail)


def _spare_resource_tracker() -> None:
    """Let the resource tracker be started unmeasured: it runs nothing of ours, and coverage is most of its start."""
    from multiprocessing import util

    spawn = util.spawnv_passfds

    def spawn_measured(path: bytes, arguments: Sequence[str], fds: Sequence[int]) -> int:
        spared = "COVERAGE_PROCESS_CONFIG" if "resource_tracker" in arguments[-1] else ""
        config = os.environ.pop(spared, None)
        try:
            return spawn(path, arguments, fds)
        finally:
            if config is not None:
                os.environ[spared] = config

    util.spawnv_passfds = spawn_measured  # type: ignore[assignment]


def main() -> None:
    """`tasuki-mp`, with gates."""
    from functools import partial

    from tasuki_mp import cli
    from tasuki_mp.supervisor import supervisor
    from tasuki_mp.supervisor.hooks import Hooks, Point

    gates = json.loads(os.environ.pop(_GATES))
    points: set[str] = set(gates["points"])

    class Gated(Hooks):
        def reach(self, point: Point) -> None:
            if point in points:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(gates["path"])
                    sock.sendall(point.encode())
                    answer = sock.recv(1)
                    if answer != b"+":
                        points.discard(point)
                    if answer == b"!":
                        raise RuntimeError("the test says so")

    _break(os.environ.pop(_MUTANT))
    _spare_resource_tracker()
    supervisor.run = partial(supervisor.run, hooks=Gated())
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
