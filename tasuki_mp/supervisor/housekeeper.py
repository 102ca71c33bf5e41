"""The housekeeper: what one of the fleet does every hour for all of them, which is to drop what has been kept long enough.

Runs on the loop. It asks every few minutes whether somebody has begun within the hour, over the upkeep connection; whoever
finds that nobody has, does it, on a connection that is opened for that and closed again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

import psycopg

from tasuki_mp import logs
from tasuki_mp.config import Keep
from tasuki_mp.store import upkeep
from tasuki_mp.store.connect import connect_async
from tasuki_mp.store.retention import LOCK_TIMEOUT, STATEMENT_TIMEOUT, Pruned, prune
from tasuki_mp.store.steps import drive_async
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import tasks
from tasuki_mp.supervisor.link import Link, UnavailableError

EVERY: Final = 3600.0
ASK_EVERY: Final = 300.0
TASK: Final = "retention"


class Housekeeper:
    """Prunes until stopped."""

    def __init__(self, dsn: str, link: Link, *, keep: Keep) -> None:
        self._dsn = dsn
        self._link = link
        self._keep = keep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._look_after_it_for_ever(), name="housekeeper")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    async def _look_after_it_for_ever(self) -> None:
        while True:
            try:
                if await self._link.call(upkeep.claim, TASK, every=EVERY):
                    await self._prune()
                    await self._link.call(upkeep.end_claim, TASK)
            except (UnavailableError, psycopg.Error) as error:
                # Where the role does not own the tables, this says so every hour: then it is `tasuki-mp prune`'s to do.
                logs.event(logging.WARNING, "retention failed", error=in_words(error))
            await asyncio.sleep(ASK_EVERY * (0.8 + 0.4 * random.random()))

    async def _prune(self) -> None:
        connection = await connect_async(
            self._dsn, name="retention", statement_timeout=STATEMENT_TIMEOUT, lock_timeout=LOCK_TIMEOUT
        )
        async with connection:
            report(await drive_async(connection, prune(self._keep)))


def report(pruned: Pruned) -> None:
    """Log what was dropped, and what has to wait."""
    if pruned.dropped:
        names = ", ".join(partition.name for partition in pruned.dropped)
        logs.event(logging.INFO, "days dropped whose retention is over", partitions=names)
    for queue, jobs in pruned.deleted.items():
        logs.event(logging.INFO, "finished jobs deleted", queue=queue, jobs=jobs)
    if pruned.batches:
        logs.event(logging.INFO, "batches forgotten none of whose jobs is kept", batches=pruned.batches)
    for name, reason in pruned.postponed.items():
        logs.event(logging.WARNING, "retention postponed", partition=name, reason=reason)
