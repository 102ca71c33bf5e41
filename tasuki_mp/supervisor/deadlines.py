"""The deadlines of running jobs: at `soft_timeout` a job is asked to end, at `timeout` it is killed.

Runs on the loop: one timer for each job that has a limit, none for the others. Both limits count from the start time on the
child's page, so a job that waited in the pipe loses nothing. Behind the supervisor stands a timer of the kernel's in the
child (`child/backstop.py`); a death by it is recognised here.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tasuki_mp import wire
from tasuki_mp.child.describe import clip, storable
from tasuki_mp.job import Lease
from tasuki_mp.limits import Limits
from tasuki_mp.outcome import Died, ErrorInfo, ErrorKind, Killed, Outcome, Raised
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.child import Child, Key
from tasuki_mp.supervisor.signals import NoStackError
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.stopping import Stopping

STACK_LIMIT: Final = 32 * 1024
_EARLY: Final = 0.5
"""Seconds by which a death may seem to come before the kernel's timer: both sides look at their clocks."""


class _Watch:
    """One job with a deadline. `stack` is where it was at its soft timeout."""

    __slots__ = ("child", "has_been_asked", "key", "limits", "slot", "stack", "timer")

    def __init__(self, slot: Slot, child: Child, key: Key, limits: Limits) -> None:
        self.slot = slot
        self.child = child
        self.key = key
        self.limits = limits
        self.timer: asyncio.TimerHandle | None = None
        self.has_been_asked = False
        self.stack = ""

    def next_limit(self) -> float | None:
        """The limit to come, in seconds from the start."""
        limits = (None if self.has_been_asked else self.limits.soft_timeout, self.limits.timeout)
        return min((limit for limit in limits if limit is not None), default=None)


class Deadlines:
    """Watches the jobs that it is told of, until it is told that they have ended."""

    def __init__(self, stopping: Stopping, *, failed: tasks.Failed) -> None:
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._watches: dict[Key, _Watch] = {}
        self._errands = tasks.Errands(failed)

    def dispatched(self, slot: Slot, child: Child, lease: Lease, limits: Limits) -> None:
        """This job was sent to a child; again, if it was taken back in between."""
        if limits.timeout is None and limits.soft_timeout is None:
            return
        self.forget(lease.key)
        watch = self._watches[lease.key] = _Watch(slot, child, lease.key, limits)
        self._set_timer(watch)

    def ended(self, key: Key, outcome: Outcome, *, ran_for: float) -> Outcome:
        """This job has ended; the outcome, with what only its watch knows."""
        if not self._watches or (watch := self.forget(key)) is None:
            return outcome
        match outcome:
            case Raised(error) if error.kind is ErrorKind.TIMEOUT and watch.stack:
                return msgspec.structs.replace(outcome, error=msgspec.structs.replace(error, stack=watch.stack))
            case Died(error) if (
                error.signal == "SIGKILL"
                and watch.limits.timeout is not None
                and ran_for >= watch.limits.timeout + wire.BACKSTOP_SECONDS - _EARLY
            ):
                return Killed(_timed_out(watch, ran_for, "killed by the kernel's timer", watch.stack))
            case _:
                return outcome

    async def stop(self) -> None:
        """Watch nothing more. May be called twice."""
        for key in list(self._watches):
            self.forget(key)
        await self._errands.end()

    def forget(self, key: Key) -> _Watch | None:
        """Watch this lease's job no more; it is the watch that there was."""
        watch = self._watches.pop(key, None)
        if watch is not None and watch.timer is not None:
            watch.timer.cancel()
        return watch

    def _set_timer(self, watch: _Watch) -> None:
        """For when the next limit can be reached at the earliest; until the job has started, that moves on."""
        limit = watch.next_limit()
        if limit is not None:
            entered = watch.child.entered_at(watch.key)
            wait = limit if entered is None else entered + limit - clock.now()
            watch.timer = self._loop.call_later(max(0.0, wait), self._look, watch)

    def _look(self, watch: _Watch) -> None:
        if watch.key not in watch.child.inflight:
            return  # its child is dead, and how it ended is about to be told; or it was taken back
        entered, limit, now = watch.child.entered_at(watch.key), watch.next_limit(), clock.now()
        if entered is None or limit is None or now < entered + limit:
            self._set_timer(watch)
        elif watch.limits.timeout is not None and now >= entered + watch.limits.timeout:
            self._errands.run(self._kill(watch, entered))
        else:
            watch.has_been_asked = True
            self._set_timer(watch)
            self._errands.run(self._ask(watch, entered))

    async def _ask(self, watch: _Watch, entered: float) -> None:
        """Write down where it is, then have it end. For ever, if it has no other limit."""
        watch.stack = await _stack(watch)
        limit = watch.limits.timeout
        until = entered + limit if limit is not None else float("inf")
        await self._stopping.ask(watch.slot, watch.child, watch.key, "timeout", until=until)

    async def _kill(self, watch: _Watch, entered: float) -> None:
        if self._stopping.is_killing(watch.key):
            return
        stack = await _stack(watch)
        ran_for = clock.now() - entered
        self._stopping.kill(watch.key, Killed(_timed_out(watch, ran_for, "killed", stack)))


async def _stack(watch: _Watch) -> str:
    try:
        return clip(storable(await watch.slot.stack(watch.child)), STACK_LIMIT)
    except NoStackError as error:
        return f"(no stack: {error})"


def _timed_out(watch: _Watch, ran_for: float, how: str, stack: str) -> ErrorInfo:
    message = f"ran for {ran_for:.3g} s and was {how}; its timeout is {watch.limits.timeout:g} s"
    return ErrorInfo(kind=ErrorKind.TIMEOUT, type="TimedOut", message=message, stack=stack)
