"""The keeper: puts on record what running jobs say of themselves, while they run.

Looks at each child's state file about once a second, and at once at those that wait for their checkpoint. What a job says
last goes with its outcome, through the outbox; the two share a connection, so that never both write at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.job import Lease
from tasuki_mp.statefile import StateReader
from tasuki_mp.store.keep import KeepItem, keep
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.outbox import POISONOUS

Key = tuple[int, int]

LOOK_EVERY: Final = 0.8
"""Seconds between two looks at everything that runs: what changed is on record two seconds later at the latest."""
BATCH_BYTES: Final = 2 * 1024 * 1024
"""Checkpoints that go into one statement, so that outcomes need not wait behind them for long."""


class Running(NamedTuple):
    """A job that runs, and what it says of itself."""

    lease: Lease
    state: StateReader


class Said(NamedTuple):
    """What is new of one running job, and which version of its progress that is."""

    lease: Lease
    item: KeepItem
    state: StateReader
    progress: int

    @property
    def size(self) -> int:
        return len(self.item.checkpoint or "") + 1000


class Keeper:
    """One task on the loop. `running` tells what runs here now under a lease that is still ours."""

    def __init__(self, link: Link, *, owner: UUID, running: Callable[[], Iterable[Running]]) -> None:
        self._link = link
        self._owner = owner
        self._running = running
        self._hurry = asyncio.Event()
        self._waiting: set[Key] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._keep_for_ever(), name="keeper")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    def keep_now(self, key: Key) -> None:
        """This job waits until its checkpoint is on record."""
        self._waiting.add(key)
        self._hurry.set()

    async def _keep_for_ever(self) -> None:
        looked_at = clock.now()
        while True:
            await tasks.wait_at_most(self._hurry, max(0.0, looked_at + LOOK_EVERY - clock.now()))
            self._hurry.clear()
            waiting, self._waiting = self._waiting, set()
            is_due = clock.now() >= looked_at + LOOK_EVERY
            if is_due:
                looked_at = clock.now()
            said = [
                found
                for running in self._running()
                if (is_due or running.lease.key in waiting) and (found := _news(running)) is not None
            ]
            for batch in _batches(said):
                try:
                    await self._keep(batch)
                except (UnavailableError, psycopg.Error) as error:
                    first = in_words(error)
                    logs.event(logging.WARNING, "progress and checkpoints not written, will try again", error=first)
                    await self._link.pause()
                    looked_at = float("-inf")  # whoever waits still waits
                    break

    async def _keep(self, batch: list[Said]) -> None:
        items = [said.item for said in batch]
        try:
            kept = await self._link.call(keep, owner=self._owner, items=items)
        except psycopg.Error as error:
            code = error.sqlstate or ""
            if code[:2] not in POISONOUS and not isinstance(error, psycopg.DataError):
                raise  # nothing is wrong with what was said
            if len(batch) > 1:
                for said in batch:
                    await self._keep([said])
                return
            lease = batch[0].lease
            logs.event(logging.ERROR, "checkpoint refused by the database", **lease.facts(), error=in_words(error))
            _settle(batch[0], is_refused=True)
            return
        for said in batch:
            if (said.item.id, said.item.lease_no) in kept:
                _settle(said, is_refused=False)
            elif said.item.checkpoint is not None:
                # Somebody holds the row, and the job may wait for this: soon again. If the lease is lost, it is killed.
                asyncio.get_running_loop().call_later(0.05, self.keep_now, (said.item.id, said.item.lease_no))


def _news(running: Running) -> Said | None:
    """What a job said since that was last written down; None if nothing."""
    key, state = running.lease.key, running.state
    progress = state.progress(key)
    if progress is not None and progress.version <= state.kept_progress:
        progress = None
    checkpoint = state.checkpoint(key) if state.checkpoint_version(key) > state.kept_checkpoint else None
    if progress is None and checkpoint is None:
        return None
    item = KeepItem(
        id=key[0],
        lease_no=key[1],
        has_progress=progress is not None,
        fraction=progress.fraction if progress is not None else None,
        note=progress.note if progress is not None else "",
        checkpoint=checkpoint[1] if checkpoint is not None else None,
        version=checkpoint[0] if checkpoint is not None else 0,
    )
    return Said(running.lease, item, state, progress.version if progress else 0)


def _settle(said: Said, *, is_refused: bool) -> None:
    """This is on record, or never will be."""
    state = said.state
    state.kept_progress = max(state.kept_progress, said.progress)
    if said.item.version:
        state.kept_checkpoint = max(state.kept_checkpoint, said.item.version)
        state.answer(said.item.version, is_refused=is_refused)


def _batches(said: list[Said]) -> Iterator[list[Said]]:
    batch: list[Said] = []
    size = 0
    for one in said:
        if batch and size + one.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch
