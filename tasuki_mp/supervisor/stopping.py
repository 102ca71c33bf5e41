"""Ending running jobs: a canceled one is asked first, what must not go on is killed at once.

Runs on the loop, with a task for each job that is being stopped. Every request is repeated until the job has ended, because
none may hit another one: a child that stands between two jobs at that moment is let go, and looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tasuki_mp.job import Lease
from tasuki_mp.outcome import CancelObeyed, Interrupted, Outcome
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.child import Child, Key
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.wire import StopReason

BETWEEN_JOBS: Final = 0.02
"""Seconds until a child that could not be killed because it was between two jobs is looked at again."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds between two signals to a handler that has not been interrupted yet: it may be building a resource, or in C."""


class Stopping:
    """What is being stopped, and how. `settle` hands on what had not started; `failed` is told of what went wrong."""

    def __init__(
        self, dispatcher: Dispatcher, *, settle: Callable[[Lease, Outcome], None], failed: tasks.Failed
    ) -> None:
        self._dispatcher = dispatcher
        self._settle = settle
        self._killing: set[Key] = set()
        self._canceling: set[Key] = set()
        self._ends: dict[Key, asyncio.Event] = {}
        """Set when a job that was asked has ended."""
        self._errands = tasks.Errands(failed)

    def kill(self, key: Key, outcome: Outcome) -> None:
        """End this lease's job with that outcome, wherever it is; running, it is killed.

        One that is about to be canceled ends as canceled.
        """
        if key in self._killing:
            return
        lease = self._dispatcher.forget(key)
        if lease is not None:
            self._settle(lease, outcome)
        elif (place := self._dispatcher.child_running(key)) is not None:
            self._kill_running(*place, key, outcome)

    def cancel(self, key: Key, *, grace: float) -> None:
        """Cancel this lease's job: at once if it does not run; else it is asked, and killed after the grace."""
        if key in self._canceling or key in self._killing:
            return
        lease = self._dispatcher.forget(key)
        if lease is not None:
            self._settle(lease, CancelObeyed())
        elif (place := self._dispatcher.child_running(key)) is not None:
            self._canceling.add(key)
            self._errands.run(self._cancel_running(*place, key, grace))

    def drop(self, key: Key) -> None:
        """This lease is not ours any more: take its job out of the line, or kill it."""
        place = self._dispatcher.child_running(key)
        self._dispatcher.forget(key)
        if place is not None and key in place[1].inflight:
            self._kill_running(*place, key, Interrupted())

    def is_killing(self, key: Key) -> bool:
        """Whether its end is a matter of milliseconds."""
        return key in self._killing

    async def ask(self, slot: Slot, child: Child, key: Key, reason: StopReason, *, until: float) -> None:
        """Ask the job to end and wait for it, until that time by the clock at most.

        `ctx.should_stop` becomes true, and where Python can run, an exception is raised in the handler.
        """
        pause = FIRST_PAUSE
        while key in child.inflight and (rest := until - clock.now()) > 0 and key not in self._killing:
            child.ask_stop(key, reason)
            if not child.was_interrupted(reason):
                slot.interrupt(child)
            await tasks.wait_at_most(self._ends.setdefault(key, asyncio.Event()), min(pause, rest))
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def ended(self, key: Key) -> None:
        """This lease's job has ended, or the lease is over."""
        if self._ends or self._killing or self._canceling:  # nearly never; this is called for every job
            if (end := self._ends.pop(key, None)) is not None:
                end.set()
            self._killing.discard(key)
            self._canceling.discard(key)

    async def settled(self) -> None:
        """Wait until nothing is being stopped."""
        await self._errands.settled()

    async def _cancel_running(self, slot: Slot, child: Child, key: Key, grace: float) -> None:
        await self.ask(slot, child, key, "cancel", until=clock.now() + grace)
        if key in child.inflight:
            self._kill_running(slot, child, key, CancelObeyed())
        self._canceling.discard(key)
        self.cancel(key, grace=grace)  # no news, unless its child died before it began: then it is in the line again

    def _kill_running(self, slot: Slot, child: Child, key: Key, outcome: Outcome) -> None:
        if key in self._killing:
            return
        self._killing.add(key)
        if key in self._canceling:
            outcome = CancelObeyed()
        self._errands.run(self._kill_until_ended(slot, child, key, outcome))

    async def _kill_until_ended(self, slot: Slot, child: Child, key: Key, outcome: Outcome) -> None:
        try:
            while key in child.inflight:
                if await slot.stop_job(child, key, outcome):
                    return  # its slot tells of its end
                # It stood between two jobs at that moment: it ends by itself, or is about to begin.
                await asyncio.sleep(BETWEEN_JOBS)
        except Exception:
            self._killing.discard(key)  # the supervisor ends now, and kills again
            raise
        self._killing.discard(key)
        self.kill(key, outcome)  # no news, unless it is in the line again
