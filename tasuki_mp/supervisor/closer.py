"""The closer: ends batches whose last job has ended, and so brings their follow-up jobs into being.

Jobs count down nowhere, so a hundred thousand of one batch can end on many hosts without waiting for each other. Whoever
writes the end of a job looks afterwards, not at each of them, whether its batch has any left: the last to write sees that
there is none. What a dead supervisor did not look at any more is found by the sweep.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import batches
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.link import Link, UnavailableError

MANY: Final = 1000
"""Live jobs of a batch are counted to here."""
FEW: Final = 50
SWEEP: Final = 100


class Closer:
    """Looks at touched batches until stopped, each the more rarely the more of its jobs are live."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._touched: dict[int, float] = {}
        """When each is looked at (CLOCK_BOOTTIME, seconds)."""
        self._not_before: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._close_for_ever(), name="closer")
        return self._task

    async def stop(self) -> None:
        """Look at what was touched a last time, if the database answers, and end."""
        if self._task is None:
            return
        await tasks.end(self._task)
        self._task = None
        try:
            await self._close(list(self._touched))
        except (UnavailableError, psycopg.Error) as error:
            logs.event(logging.INFO, "batches not looked at, others will", error=in_words(error))

    def touched(self, ids: Iterable[int]) -> None:
        """Jobs of these batches have ended, and that is on record."""
        for id in ids:
            if id not in self._touched:
                self._touched[id] = self._not_before.get(id, 0.0)
                self._wake.set()

    async def sweep(self) -> None:
        """Close what nobody looks at any more. Raises UnavailableError and psycopg's errors."""
        while found := await self._link.call(batches.open_batches, limit=SWEEP):
            await self._close(found)
            if len(found) < SWEEP:
                break

    async def _close_for_ever(self) -> None:
        while True:
            if self._touched:
                wait = min(self._touched.values()) - clock.now()
                if wait > 0:
                    await tasks.wait_at_most(self._wake, wait)
            else:
                await self._wake.wait()
            self._wake.clear()
            now = clock.now()
            due = [id for id, at in self._touched.items() if at <= now]
            try:
                await self._close(due)
            except UnavailableError as error:
                logs.event(logging.WARNING, "closing batches failed", error=in_words(error))
                await self._link.pause()
            except psycopg.Error as error:
                logs.event(logging.WARNING, "closing batches refused", sqlstate=error.sqlstate, error=in_words(error))
                await self._link.pause()

    async def _close(self, ids: list[int]) -> None:
        if not ids:
            return
        # Taken off first: what ends while we ask must be looked at again.
        for id in ids:
            self._touched.pop(id, None)
        try:
            answers = await self._link.call(batches.close, ids=ids)
        except BaseException:
            self.touched(ids)
            raise
        now = clock.now()
        for id, live in answers:
            if live is None or live == 0:
                self._not_before.pop(id, None)
                if live == 0:
                    logs.event(logging.INFO, "batch ended", batch=id)
            else:
                self._not_before[id] = now + (1.0 if live >= MANY else 0.1 if live > FEW else 0.0)
