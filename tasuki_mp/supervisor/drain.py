"""Whether there is anything left to do: for `run --drain`, asked of the database whenever this supervisor is idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import upkeep
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import tasks
from tasuki_mp.supervisor.flow import Flow
from tasuki_mp.supervisor.link import Link, UnavailableError


class Drain:
    """`on_drained` is called once nothing waits and nothing runs, here and elsewhere, with whether jobs had to be left."""

    def __init__(
        self,
        mode: Literal["all", "due"],
        link: Link,
        flow: Flow,
        *,
        queues: list[str],
        on_drained: Callable[[bool], None],
    ) -> None:
        self._mode = mode
        self._link = link
        self._flow = flow
        self._queues = queues
        self._on_drained = on_drained
        self._check: asyncio.Task[None] | None = None

    def idle(self) -> None:
        """Nothing waits and nothing runs here: ask about the rest, unless that is being asked already."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._ask(), name="drain check")
            tasks.watch(self._check, self._flow.failed)  # else nobody would ask again, and it would never end

    async def _ask(self) -> None:
        try:
            await self._flow.closer.sweep()  # a batch that ends now may have a follow-up
            left = await self._link.call(
                upkeep.drain_left,
                queues=self._queues,
                reach=self._flow.dispatcher.reach,
                due_only=self._mode == "due",
            )
        except (UnavailableError, psycopg.Error) as error:
            logs.event(logging.WARNING, "drain check failed", error=in_words(error))
            return
        if left.waiting or left.running or not self._flow.dispatcher.is_idle or len(self._flow.outbox):
            return
        for handler, count in sorted(left.unknown.items()):
            logs.event(logging.WARNING, "left: no such handler in this application", handler=handler, jobs=count)
        for queue, count in sorted(left.paused.items()):
            logs.event(logging.WARNING, "left: the queue is paused", queue=queue, jobs=count)
        for handler, count in sorted(left.larger.items()):
            room = self._flow.dispatcher.room
            logs.event(
                logging.WARNING,
                "left: larger than this host",
                handler=handler,
                jobs=count,
                memory_limit=room.memory,
                procs=room.cpus,
            )
        for handler, waits in sorted(left.dependent.items()):
            logs.event(
                logging.WARNING,
                "left: waits for a job that is not run here",
                handler=handler,
                jobs=waits.jobs,
                waits_for=waits.needs_id,
            )
        logs.event(logging.INFO, "drained")
        self._on_drained(left.is_any_left_behind)
