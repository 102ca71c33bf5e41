"""A slot: one unit of capacity, which always has a child, or is getting one.

Runs on the loop. It alone starts, feeds, signals and buries its children, and tells the dispatcher what became of the jobs
it was given. A child ends in one place, `_died`, whatever the reason: its pidfd is the only proof of death that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, Protocol, assert_never

from tasuki_mp import logs, wire
from tasuki_mp.child.describe import storable
from tasuki_mp.followups import Spool
from tasuki_mp.job import Lease
from tasuki_mp.outcome import Died, ErrorInfo, ErrorKind, Outcome
from tasuki_mp.supervisor import clock, signals, tasks, tree
from tasuki_mp.supervisor.birth import Births, ImportFailedError
from tasuki_mp.supervisor.child import Child, Death, Key
from tasuki_mp.supervisor.echo import Echo, Piece, last_words, users_part
from tasuki_mp.supervisor.hooks import Hooks

DISMISS_FOR: Final = 5.0
"""Seconds a child has to close its resources and return before its tree is killed."""
DYING_FOR: Final = 0.05
"""Seconds between the end of a dying child's sockets and its death, at most: who closes them and lives on is killed."""
FRAMES_AT_ONCE: Final = 256
"""Outcome frames of one child that are read before the loop may do something else; more than it ever has jobs."""
FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 30.0

ShowSlotsLine = Callable[[int, Lease | None, str], None]
"""Called with the slot, the job (None outside of any), and a line that a child of the slot has written."""


class SlotEvents(Protocol):
    """What a slot tells its dispatcher; called on the loop."""

    def slot_ready(self, slot: Slot, hello: wire.Hello) -> None:
        """A new child takes jobs now."""

    def job_finished(
        self, slot: Slot, child: Child, lease: Lease, frame: wire.Finished, output: str, spool: Spool | None
    ) -> None:
        """A handler ended and its child lives.

        `output` is what is stored of what it wrote, `spool` has its follow-up jobs if they are many.
        """

    def keep_now(self, key: Key) -> None:
        """A running job waits until its checkpoint is on record."""

    def frames_read(self, child: Child) -> float:
        """Every frame that had come was told. Returns for how many seconds this child need not be listened to."""

    def job_ended(self, slot: Slot, child: Child, lease: Lease, outcome: Outcome, ran_for: float, output: str) -> None:
        """The child died, or was killed, while it ran this job."""

    def jobs_returned(self, leases: list[Lease]) -> None:
        """These were never started, and can be dispatched elsewhere."""

    def child_died(self, slot: Slot, child: Child, death: Death, lease: Lease | None, *, was_expected: bool) -> None:
        """A child's process is gone, and with it the job of that lease, which it ran."""

    def start_failed(self, slot: Slot, error: Exception, failures: int) -> None:
        """No child came up; another try follows after a pause."""

    def failed(self, error: BaseException) -> None:
        """Something went wrong that nobody foresaw: a child may be left as it is, and a job in nobody's hands."""


class Slot:
    """Keeps one child in service. `child` is the one that takes jobs now, None while there is none."""

    def __init__(self, index: int, births: Births, events: SlotEvents, show: ShowSlotsLine, hooks: Hooks) -> None:
        self.index = index
        self.child: Child | None = None
        self.reserved_for: int | None = None
        """The job that this slot's next fresh child is meant for, or whose second unit it is."""
        self._births = births
        self._events = events
        self._show = show
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._need_child = asyncio.Event()
        self._try_again = asyncio.Event()
        """Set when a child that could not start may be able to now."""
        self._renewals = 0
        self._is_stopping = False
        self._echoes: dict[Child, Echo] = {}
        self._dismissed: set[Child] = set()
        self._resting: set[Child] = set()
        """Children that are read by the clock."""
        self._buried: dict[Child, asyncio.Event] = {}
        self._verdicts: dict[Key, Outcome] = {}
        self._hit: set[Key] = set()
        """Killed, and their child not buried yet: their verdict stands."""
        self._errands = tasks.Errands(events.failed)
        self._keeper: asyncio.Task[None] | None = None

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> asyncio.Task[None]:
        """Begin to keep a child; the task never ends by itself."""
        self._need_child.set()
        self._keeper = asyncio.create_task(self._keep(), name=f"slot {self.index}")
        return self._keeper

    async def stop(self) -> None:
        """Take no further job, let what runs end, dismiss every child and wait until each is dead. May be called twice."""
        self._is_stopping = True
        if self._keeper is not None:
            await tasks.end(self._keeper)
        for child in self.children:
            self._leave(child)
        for buried in list(self._buried.values()):
            await buried.wait()
        await self._errands.settled()

    def replace(self, reason: str) -> None:
        """Get a fresh child, unless one is coming already; the present one is dismissed when the new one takes over."""
        if self.child is not None:
            if self.child.is_replaced:
                return
            self.child.is_replaced = True
        logs.event(logging.DEBUG, "child is replaced", slot=self.index, reason=reason)
        self._need_child.set()

    def renew(self, reason: str) -> None:
        """Get a fresh child, and give the present one nothing more to do."""
        if self._keeper is None or self._is_stopping:
            return
        self._renewals += 1
        if self.child is not None:
            self._leave(self.child)
        self.replace(reason)
        self._try_again.set()

    @property
    def children(self) -> set[Child]:
        """Every child of this slot that may still live, those on their way out included."""
        return set(self._echoes)

    @property
    def is_busy(self) -> bool:
        """Whether any child of this slot has a job."""
        return any(child.inflight for child in self._echoes)

    async def _keep(self) -> None:
        failures = 0
        while True:
            await self._need_child.wait()
            self._need_child.clear()
            self._try_again.clear()
            renewals = self._renewals
            try:
                child, hello = await self._births.child_for(self.index)
            except (OSError, RuntimeError, EOFError, ImportFailedError) as error:
                failures += 1
                self._events.start_failed(self, error, failures)
                await tasks.wait_at_most(
                    self._try_again, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 16))
                )
                self._need_child.set()
                continue
            failures = 0
            self._adopt(child)
            old, self.child = self.child, child
            if old is not None:
                self._leave(old)
            if renewals != self._renewals:
                self._leave(child)  # it may have come too early
                continue
            self._events.slot_ready(self, hello)

    def _adopt(self, child: Child) -> None:
        self._buried[child] = asyncio.Event()
        self._echoes[child] = Echo(child.output, partial(self._show, self.index))
        child.future.add_done_callback(lambda future: self._on_loop(self._executor_ended, child, future))
        self._loop.add_reader(child.outcomes.fileno(), self._readable, child)
        self._loop.add_reader(child.pidfd, self._died, child)
        self._hooks.reach("child_hello")

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self, child: Child) -> None:
        """Frames have come, or the child was left alone for long enough.

        A child that has plenty waiting is read by the clock and not at each frame: to be woken a thousand times a
        second costs jobs of a millisecond a tenth of the machine.
        """
        if not self._read(child):
            return
        rest = self._events.frames_read(child)
        if rest > 0:
            if child not in self._resting:
                self._resting.add(child)
                self._loop.remove_reader(child.outcomes.fileno())
            self._loop.call_later(rest, self._rested, child)
        elif child in self._resting:
            self._resting.discard(child)
            self._loop.add_reader(child.outcomes.fileno(), self._readable, child)

    def _rested(self, child: Child) -> None:
        if child in self._resting:
            self._readable(child)

    def _listen_no_more(self, child: Child) -> None:
        self._resting.discard(child)
        self._loop.remove_reader(child.outcomes.fileno())

    def _read(self, child: Child) -> bool:
        """Take in the frames that are there; False if there will be no further ones."""
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame, fds = child.receive()
            except BlockingIOError:
                return True
            except wire.ClosedError:
                self._listen_no_more(child)
                self._silent(child, "closed its outcome socket", dying_for=DYING_FOR)
                return False
            except (wire.FrameError, OSError) as error:
                self._listen_no_more(child)
                self._silent(child, f"broke the protocol: {error}")
                return False
            match frame:
                case wire.Hello():  # it has said so already; what comes with it is closed with the child
                    for fd in fds:
                        os.close(fd)
                case wire.Finished():
                    self._finished(child, frame, Spool(fds[0]) if fds else None)
                case wire.Keep():
                    self._events.keep_now((frame.id, frame.lease_no))
                case wire.Retiring():
                    self._errands.run(self._dismiss(child, is_littered=frame.is_littered))
                case _:
                    assert_never(frame)
        return True

    def _finished(self, child: Child, frame: wire.Finished, spool: Spool | None) -> None:
        lease = child.inflight.pop((frame.id, frame.lease_no), None)
        if lease is None:
            if spool is not None:
                spool.close()
            return  # taken off the child by a lost lease: nobody waits for this outcome
        child.jobs_run += 1
        child.is_fixed = frame.is_fixed
        output = self._echoes[child].job_done(lease, frame.output_end)
        if frame.retire and child is self.child:
            self.child = None
            self._events.jobs_returned(child.take_back())
            if not child.is_replaced:
                self.replace(frame.retire)
        elif frame.recycle and child is self.child:
            self.replace(frame.recycle)
        if frame.retire:
            self._errands.run(self._see_off(child, 2 * DISMISS_FOR))
        self._events.job_finished(self, child, lease, frame, output, spool)
        if child is not self.child and not child.inflight and not frame.retire:
            self._leave(child)

    def _silent(self, child: Child, reason: str, *, dying_for: float = 0.0) -> None:
        """Nothing more will come from this child: it is dying, or must."""
        if child in self._echoes and child not in self._dismissed and not child.is_dead:
            self._errands.run(self._kill(child, reason, dying_for=dying_for))

    def peek(self) -> None:
        """Show what the running job has printed so far."""
        for child, echo in self._echoes.items():
            running = child.running()
            if running is not None and child.is_heard:
                echo.peek(running[0])

    def shed(self) -> bool:
        """Let go of output that comes faster than anybody could read it; whether there is any."""
        has_flood = False
        for child, echo in self._echoes.items():
            if child.is_heard:
                has_flood |= echo.shed()
        return has_flood

    def piece(self, child: Child, start: int) -> Piece:
        """What the job that this child runs has written, from byte `start` on; empty if the child is gone."""
        echo = self._echoes.get(child)
        return Piece(start, start, "") if echo is None else echo.piece(start)

    # ── taking back, leaving, killing, dying ──────────────────────────────────────────────────────────────────────────

    def _leave(self, child: Child) -> None:
        """Take a child out of service: what it has not started goes back, what it runs it may finish."""
        if child is self.child:
            self.child = None
        returned = child.take_back()
        if returned:
            self._events.jobs_returned(returned)
        if not child.inflight and child not in self._dismissed:
            child.ask_to_stop()
            self._errands.run(self._dismiss(child, is_littered=False))

    async def _dismiss(self, child: Child, *, is_littered: bool) -> None:
        """The end of a child that has no job: it returns by itself, or is killed with all that is below it."""
        self._dismissed.add(child)
        if not is_littered:
            await self._births.in_process_thread(child.executor.shutdown, False)
            await self._see_off(child, DISMISS_FOR)
        else:
            await self._kill(child, "its jobs left processes behind")

    async def _see_off(self, child: Child, seconds: float) -> None:
        """Wait for the child's end, and bring it about if it takes longer than that."""
        if (buried := self._buried.get(child)) is not None:
            await tasks.wait_at_most(buried, seconds)
        if child in self._buried:
            await self._kill(child, "it did not return")

    async def stop_job(self, child: Child, key: Key, outcome: Outcome) -> bool:
        """Kill the child's tree, but only if at that very moment exactly this lease's handler runs in it.

        The job then ends with `outcome`. False: it had ended, or had not begun, and nothing was harmed.
        """
        if key in self._hit:
            return True  # and is about to be buried
        self._verdicts[key] = outcome
        is_killed = await asyncio.to_thread(_kill_if_running, child, key)
        if not is_killed:
            self._verdicts.pop(key, None)
        elif key in self._verdicts:
            self._hit.add(key)
        return is_killed

    def interrupt(self, child: Child) -> None:
        """Have the running handler look at its page now, where Python can run."""
        if not child.is_dead and child in self._echoes:
            signals.interrupt(child)

    async def stack(self, child: Child) -> str:
        """Where every thread of this child is now. Raises NoStackError."""
        async with child.turn:
            return await asyncio.to_thread(signals.stack_of, child)

    async def _kill(self, child: Child, reason: str, *, dying_for: float = 0.0) -> None:
        """Kill it with all that is below it, unless it dies by itself within so many seconds."""
        try:
            pidfd = os.dup(child.pidfd)  # the slot closes its own when the child is buried
        except OSError:
            return  # it is
        try:
            if dying_for and await asyncio.to_thread(tree.has_died, pidfd, within=dying_for):
                return
            child.is_killed = True
            logs.event(logging.DEBUG, "child is killed", slot=self.index, pid=child.pid, reason=reason)
            await asyncio.to_thread(tree.kill_tree, child.pid, pidfd=pidfd)
        finally:
            os.close(pidfd)

    def _executor_ended(self, child: Child, future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None and child in self._echoes and child not in self._dismissed and tree.is_alive(child.pidfd):
            # The forkserver is gone, the child is not: its job ends over its own sockets, then another takes its place.
            logs.event(logging.WARNING, "forkserver died, child runs on", slot=self.index, pid=child.pid)
            if child is self.child:
                self.replace("its forkserver died")

    def _died(self, child: Child) -> None:
        """The pidfd says that the process is gone: see what became of its jobs, make room for the next child."""
        child.is_dead = True
        self._loop.remove_reader(child.pidfd)
        self._read(child)
        self._listen_no_more(child)
        was_serving = child is self.child
        if was_serving:
            self.child = None
            if not self._is_stopping and not child.is_replaced:
                self._need_child.set()
        returned = child.take_back()
        died: list[tuple[Lease, float]] = []
        now = clock.now()
        for key, lease in list(child.inflight.items()):
            entered = child.entered_at(key)
            if entered is None:
                returned.append(lease)
            else:
                died.append((lease, now - entered))
        child.inflight.clear()
        self._events.jobs_returned(returned)
        was_expected = child in self._dismissed
        self._errands.run(self._bury(child, died, was_expected=was_expected))

    async def _bury(self, child: Child, died: list[tuple[Lease, float]], *, was_expected: bool) -> None:
        try:
            death = await self._births.in_process_thread(self._births.nursery.bury, child)
            self._tell_death(child, death, died, was_expected=was_expected)
        finally:
            self._echoes.pop(child, None)
            self._buried.pop(child).set()
            child.close()

    def _tell_death(self, child: Child, death: Death, died: list[tuple[Lease, float]], *, was_expected: bool) -> None:
        echo = self._echoes.pop(child)
        report = echo.crash_report()
        output = echo.job_died(died[0][0] if died else None)
        self._dismissed.discard(child)
        for lease, ran_for in died:
            outcome = self._verdicts.pop(lease.key, None)
            self._hit.discard(lease.key)
            was_expected = was_expected or outcome is not None
            outcome = outcome or Died(_died_of(death, report, output))
            self._events.job_ended(self, child, lease, outcome, ran_for, output)
        self._events.child_died(self, child, death, died[0][0] if died else None, was_expected=was_expected)

    # ── plumbing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the supervisor has ended
            self._loop.call_soon_threadsafe(work, *arguments)


def _kill_if_running(child: Child, key: Key) -> bool:
    """In a worker thread: stop the child, look at its page, and kill or let go."""
    try:
        pidfd = os.dup(child.pidfd)  # the slot closes its own when the child is buried
    except OSError:
        return False
    try:
        if not tree.freeze(pidfd):
            return False
        if child.is_in_handler(key):
            tree.kill_tree(child.pid, pidfd=pidfd)
            return True
        tree.thaw(pidfd)
        return False
    finally:
        os.close(pidfd)


def _died_of(death: Death, report: str, output: str) -> ErrorInfo:
    return ErrorInfo(
        kind=ErrorKind.CRASH,
        type="ChildDied",
        message=f"the child process was {death}" if death.signal else f"the child process {death}",
        traceback=storable(users_part(report)),
        output=last_words(output, report),
        signal=death.signal,
        exit_code=death.exit_code,
    )
