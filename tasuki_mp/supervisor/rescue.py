"""The rescuer: takes back what dead supervisors held, and keeps the tables in order around it.

Runs on the loop with a connection of its own, in every supervisor; no leader is needed. Expired leases of others are taken
only by one that has itself heartbeated without a gap for a whole lease: after an outage of the database everybody's leases
have expired, and the first one back must not steal them all.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import upkeep, work
from tasuki_mp.store.upkeep import OtherSupervisor, SupervisorRow
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.heartbeat import Heartbeat
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.identity import is_provably_gone
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.voice import Voice

BATCH: Final = 500
HOLD_EVERY: Final = 30.0
HOLD_GRACE: Final = 600.0
HOLD_FOR: Final = 2.0
"""Seconds in each round for holding: a million takes some ten rounds."""
PARTITIONS_EVERY: Final = 3600.0
KEYS: Final = "keys"
KEYS_EVERY: Final = 30.0
"""How often one of the fleet looks for jobs that are held for a key that is free."""


def has_served_quarantine(*, unbroken_for: float, server_up_for: float, lease_for: float) -> bool:
    """Whether a supervisor may take expired leases of others: it and the database have both been up for a whole lease."""
    return unbroken_for > lease_for and server_up_for > lease_for


class Rescuer:
    """Looks around three times in a lease. `look_everywhere` is called when jobs may have become due out of turn."""

    def __init__(
        self,
        link: Link,
        *,
        me: SupervisorRow,
        heartbeat: Heartbeat,
        release_unknown: Callable[[], Awaitable[int]],
        look_everywhere: Callable[[], None],
        sweep: Callable[[], Awaitable[None]],
        voice: Voice,
        hooks: Hooks,
    ) -> None:
        self._link = link
        self.row = me
        """This supervisor, as it is registered again in each round."""
        self._heartbeat = heartbeat
        self._release_unknown = release_unknown
        self._look_everywhere = look_everywhere
        self._sweep = sweep
        self._voice = voice
        self._hooks = hooks
        self._held_at = float("-inf")
        self._partitions_at = clock.now()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._look_around_for_ever(), name="rescuer")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    async def _look_around_for_ever(self) -> None:
        while True:
            try:
                await self.look_around()
            except (UnavailableError, psycopg.Error) as error:
                logs.event(logging.WARNING, "upkeep failed", error=in_words(error))
            await asyncio.sleep(self.row.lease_seconds / 3 * (0.8 + 0.4 * random.random()))

    async def look_around(self) -> None:
        """One round: rescue, give back what we never heard of, hold and let go, free keys, partitions."""
        # Again, since somebody else forgets us if we stand still for longer than our lease.
        await self._link.call(upkeep.register, self.row)
        others = await self._link.call(upkeep.other_supervisors, own=self.row.owner)
        gone = [other for other in others if is_provably_gone(other)]
        await self._rescue(gone, is_gone=True)
        stale = [other for other in others if other.is_stale and other not in gone]
        await self._rescue(await self._rescuable(stale), is_gone=False)
        if returned := await self._release_unknown():
            logs.event(logging.INFO, "unknown leases given back", jobs=returned)
            self._look_everywhere()
        await self._sweep()
        now = clock.now()
        if now - self._held_at >= HOLD_EVERY:
            self._held_at = now
            await self._hold_and_let_go()
        if await self._link.call(upkeep.claim, KEYS, every=KEYS_EVERY):
            await self._free_keys()
        if now - self._partitions_at >= PARTITIONS_EVERY:
            self._partitions_at = now
            await self._link.call(upkeep.ensure_partitions)

    async def _rescuable(self, stale: list[OtherSupervisor]) -> list[OtherSupervisor]:
        """Those whose leases may be taken. One with a longer lease than ours has that much time to come back."""
        since = self._heartbeat.unbroken_since
        if not stale or since is None or self._heartbeat.age > self.row.lease_seconds:
            return []
        unbroken_for = clock.now() - since
        server_up_for = await self._link.call(upkeep.postmaster_uptime)
        return [
            other
            for other in stale
            if has_served_quarantine(
                unbroken_for=unbroken_for,
                server_up_for=server_up_for,
                lease_for=max(self.row.lease_seconds, other.lease_seconds),
            )
        ]

    async def _rescue(self, others: list[OtherSupervisor], *, is_gone: bool) -> None:
        if not others:
            return
        self._hooks.reach("before_rescue")
        owners = [other.owner for other in others]
        while True:
            rescued = await self._voice.send(
                lambda notify: self._link.call(work.rescue, owners=owners, is_gone=is_gone, limit=BATCH, notify=notify)
            )
            for job in rescued:
                logs.event(
                    logging.WARNING,
                    "job rescued",
                    job=job.id,
                    handler=job.handler,
                    attempt=job.attempt,
                    slot=job.slot,
                    queue=job.queue,
                    state=job.status,
                )
            if rescued:
                self._look_everywhere()
            if len(rescued) < BATCH:
                break
        for other in others:
            if await self._link.call(upkeep.deregister, other.owner):
                logs.event(logging.INFO, "dead supervisor forgotten", host=other.host, pid=other.pid)

    async def _hold_and_let_go(self) -> None:
        held = 0
        began = clock.now()
        while found := await self._link.call(upkeep.hold_unknown, queues=self.row.queues, grace=HOLD_GRACE):
            held += found
            # While most of the head is nobody's, there is likely more of it behind.
            if found < upkeep.HOLD_BATCH / 2 or clock.now() - began > HOLD_FOR:
                break
        if held:
            logs.event(logging.WARNING, "jobs of unknown handlers held", jobs=held)
        let_go = 0
        while taken := await self._voice.send(
            lambda notify: self._link.call(upkeep.release_held, handlers=self.row.handlers, notify=notify)
        ):
            let_go += taken
        if let_go:
            logs.event(logging.INFO, "held jobs let go", jobs=let_go)
            self._look_everywhere()

    async def _free_keys(self) -> None:
        if freed := await self._voice.send(lambda notify: self._link.call(upkeep.release_keys, notify=notify)):
            logs.event(logging.INFO, "jobs held for a free key let go", jobs=freed)
        await self._link.call(upkeep.end_claim, KEYS)
