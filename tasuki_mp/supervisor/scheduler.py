"""The scheduler: inserts the jobs of schedules when they tick. Every supervisor has one, and none leads.

What it knows of the schedules only says when to wake up. A tick is decided in a transaction that has taken the schedule's
row, by the database's clock, and its row and its job are inserted together: so it fires once in the whole fleet, and if
this process dies before the commit, another one's turn comes. One that finds a schedule taken leaves it to who has it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.errors import ScheduleError
from tasuki_mp.schedule import ScheduleInfo
from tasuki_mp.store import schedules
from tasuki_mp.store.schedules import Fired, Mine
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import AsyncConnection, Link, UnavailableError
from tasuki_mp.supervisor.voice import Voice

LOOK_EVERY: Final = 30.0
"""Seconds after which the schedules are read again, should a notification of a change be lost."""
LOOK_AGAIN: Final = 0.25
"""Seconds after finding a schedule taken by somebody else: by then its ticks are decided."""
SPREAD: Final = 0.02
"""Seconds over which the supervisors of a fleet come to a tick, so that they don't all find it taken."""
AT_ONCE: Final = 200
"""Schedules taken in one transaction."""
TRIM_EVERY: Final = 600.0


class Scheduler:
    """Fires the ticks of these schedules, and of those stored at run time for these handlers, until stopped."""

    def __init__(
        self,
        link: Link,
        upkeep_link: Link,
        *,
        owner: UUID,
        infos: Sequence[ScheduleInfo],
        handlers: Sequence[str],
        voice: Voice,
        hooks: Hooks,
    ) -> None:
        self._link = link  # opened when there is something to fire
        self._upkeep_link = upkeep_link
        self._owner = owner
        self._voice = voice
        self._hooks = hooks
        self._next: dict[str, datetime] = {}
        """When each schedule ticks next, as far as is known."""
        self._ahead = 0.0
        """Seconds from this host's clock to the database's."""
        self._look_at = float("-inf")
        self._trim_at = clock.now() + TRIM_EVERY * random.random()
        self._complained: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.mind(infos, handlers)

    def mind(self, infos: Sequence[ScheduleInfo], handlers: Sequence[str]) -> None:
        """From now on, fire the ticks of these schedules, and of those stored for these handlers."""
        self._names = sorted(info.name for info in infos)
        self._handlers = list(handlers)
        self.hint()

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._tick_for_ever(), name="scheduler")
        return self._task

    async def stop(self) -> None:
        """Fire no more. A tick that is on its way is decided, or not at all."""
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None
        await self._link.close()

    def hint(self) -> None:
        """Schedules have changed, or may have."""
        self._look_at = float("-inf")
        self._wake.set()

    async def _tick_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait = await self._once()
            except UnavailableError as error:
                logs.event(logging.WARNING, "schedules can't be looked at", error=str(error))
                self._look_at = float("-inf")
                await self._link.pause()
                continue
            except psycopg.Error as error:
                logs.event(logging.WARNING, "schedules refused", sqlstate=error.sqlstate, error=in_words(error))
                self._look_at = float("-inf")
                await self._link.pause()
                continue
            await tasks.wait_at_most(self._wake, wait)

    async def _once(self) -> float:
        """Fire what is due; returns the seconds until something may be."""
        now = clock.now()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY * (0.8 + 0.4 * random.random())
            await self._upkeep_link.call(schedules.trim)
        if now >= self._look_at:
            await self._look()
        database_now = clock.now() + self._ahead
        due = [name for name, tick in self._next.items() if tick.timestamp() <= database_now]
        for start in range(0, len(due), AT_ONCE):
            await self._fire(due[start : start + AT_ONCE])
        soonest = min((tick.timestamp() for tick in self._next.values()), default=float("inf"))
        until_tick = soonest - (clock.now() + self._ahead) + SPREAD * random.random()
        return max(0.0, min(until_tick, self._look_at - clock.now()))

    async def _look(self) -> None:
        # Before it: a change that is told of meanwhile may not be in what is read.
        self._look_at = clock.now() + LOOK_EVERY
        now, mine = await self._upkeep_link.call(schedules.look_own, names=self._names, handlers=self._handlers)
        self._synchronise(now)
        self._next = {}
        for each in mine:
            self._expect(each)

    def _expect(self, mine: Mine) -> None:
        """Wait for the next tick of a schedule, if there is one."""
        try:
            tick = next(mine.times.ticks(mine.decided_until), None)
        except ScheduleError as error:  # no such time zone on this host, say; another one may know it
            tick = None
            if mine.name not in self._complained:
                self._complained.add(mine.name)
                logs.event(logging.ERROR, "schedule can't be used here", schedule=mine.name, error=str(error))
        if tick is None:
            self._next.pop(mine.name, None)
        else:
            self._next[mine.name] = tick

    async def _fire(self, names: Sequence[str]) -> None:
        try:
            fired = await self._voice.send(lambda notify: self._link.call(self._fire_in_time, names, notify=notify))
        except (psycopg.Error, ScheduleError) as error:
            if len(names) == 1:
                logs.event(logging.ERROR, "tick can't be fired", schedule=names[0], error=in_words(error))
                self._next.pop(names[0])  # until the schedules are read again
                return
            for name in names:  # one that can't be fired must not keep the others back
                await self._fire([name])
            return
        self._hooks.reach("after_tick_commit")
        if fired.now is not None:
            self._synchronise(fired.now)
        for mine in fired.decided:
            self._expect(mine)
        taken = {mine.name for mine in fired.decided}
        if any(name not in taken for name in names):
            for name in names:
                if name not in taken:
                    self._next.pop(name)
            self._look_at = min(self._look_at, clock.now() + LOOK_AGAIN)
        for tick in fired.ticks:
            logs.event(
                logging.INFO if tick.verdict == "fired" else logging.WARNING,
                f"schedule {tick.verdict}",
                schedule=tick.schedule,
                tick=tick.tick.isoformat(),
                job=tick.job_id,
            )

    async def _fire_in_time(self, connection: AsyncConnection, names: Sequence[str], *, notify: bool) -> Fired:
        return await schedules.fire(
            connection,
            owner=self._owner,
            names=names,
            before_commit=lambda: self._hooks.reach("before_tick_commit"),
            notify=notify,
        )

    def _synchronise(self, now: datetime) -> None:
        self._ahead = now.timestamp() - clock.now()
