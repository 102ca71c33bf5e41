"""The outbox: what is decided about finished jobs, kept until the database has given a verdict on each.

One flush at a time, in batches: at once when idle, every few hundredths of a second under load, since nobody waits for it.
A connection that died at COMMIT means sending again; the fence makes that safe. An element that the database refuses is
found by halving the batch, and that job alone fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import logs
from tasuki_mp.errors import ConflictError
from tasuki_mp.followups import Spool, SpoolError
from tasuki_mp.job import JobRow, Lease
from tasuki_mp.outcome import ErrorInfo, ErrorKind, Settled
from tasuki_mp.store import upkeep, work
from tasuki_mp.store.words import in_words
from tasuki_mp.store.work import FinishItem, Verdict
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.alone import Alone
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.voice import Voice, is_queue_full

Key = tuple[int, int]

FLUSH_EVERY: Final = 0.025
"""Seconds between flushes under load: finishing five times as often cost jobs of a millisecond a third of the machine."""
FLUSH_SHARE: Final = 20.0
"""A flush comes no sooner than so many times its own duration after the last: a busy database is asked less often."""
LONGEST_FLUSH: Final = 0.200
"""Seconds that a decided outcome waits at most; if the supervisor is killed meanwhile, the job runs again."""
BATCH: Final = 1024
POISONOUS: Final = {"21", "22", "23", "54"}
"""Classes of SQLSTATE that speak of the data in a statement, not of the server's state: the same will fail again."""
ALONE_BOUND: Final = 64
"""Entries with many follow-up jobs that may wait: each keeps a file open."""
ALONE_FOR: Final = 60.0
"""Seconds more that the last of those get at the end."""
TRIM_EVERY: Final = 25
"""Lease numbers of one job between two looks at how long its history has become."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One decided attempt on its way to the database."""

    lease: Lease
    settled: Settled
    usage: str
    started_ago: float | None
    """Seconds since the handler was entered, as of `at`; None if it never was."""
    at: float
    """CLOCK_BOOTTIME in seconds when the attempt ended."""
    checkpoint: str | None = None
    """What it left for the next attempt; empty if that is on record, None if there is none."""
    output: str = ""
    """The end of what it wrote."""
    followups: tuple[JobRow, ...] = ()
    spool: Spool | None = None
    """Where the follow-up jobs are, if they are many."""

    @property
    def is_alone(self) -> bool:
        """Whether it is finished in a transaction of its own."""
        return self.spool is not None or (bool(self.followups) and not all(row.is_plain for row in self.followups))

    def facts(self) -> dict[str, Any]:
        """What the log says of this attempt."""
        return self.lease.facts(msgspec.json.decode(self.usage).get("slot"))

    def close(self) -> None:
        """Let go of the follow-up jobs."""
        if self.spool is not None:
            self.spool.close()


class OutboxEvents(Protocol):
    """What the outbox tells its supervisor."""

    def leases_over(self, keys: Sequence[Key]) -> None:
        """The database has given a final verdict on these leases."""

    def batches_touched(self, ids: set[int]) -> None:
        """Jobs of these batches have ended for good."""

    def outbox_has_room(self) -> None:
        """It was full, and is no more."""

    def goes_again(self) -> None:
        """A job is pending again, and may be due before long."""


class Outbox:
    """Entries keyed by (id, lease_no), oldest first; bounded by whoever looks at `is_full` before leasing more."""

    def __init__(
        self,
        link: Link,
        alone: Alone,
        *,
        owner: UUID,
        bound: int,
        events: OutboxEvents,
        voice: Voice,
        metrics: Metrics,
        hooks: Hooks,
    ) -> None:
        self._link = link
        self._alone = alone
        self._owner = owner
        self._bound = bound
        self._events = events
        self._voice = voice
        self._metrics = metrics
        self._hooks = hooks
        self._entries: dict[Key, Entry] = {}
        self._alone_entries: dict[Key, Entry] = {}
        """Those that are finished one by one, beside the batches."""
        self._was_full = False
        """Whether somebody may wait for room."""
        self._alone_wanted = asyncio.Event()
        self._alone_task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._enough = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._entries) + len(self._alone_entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries or key in self._alone_entries

    @property
    def is_full(self) -> bool:
        alone = len(self._alone_entries)
        return len(self._entries) + alone >= self._bound or alone >= ALONE_BOUND

    def put(self, entry: Entry) -> None:
        """Write this down with one of the next flushes."""
        self._empty.clear()
        if entry.is_alone:
            self._alone_entries[entry.lease.key] = entry
            self._alone_wanted.set()
        else:
            self._entries[entry.lease.key] = entry
            self._wanted.set()
            if len(self._entries) >= BATCH:
                self._enough.set()
        if self.is_full:
            self._was_full = True

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._alone_task = asyncio.create_task(self._finish_alone_for_ever(), name="outbox for single jobs")
        self._task = asyncio.create_task(self._flush_for_ever(), name="outbox")
        return self._task

    def hurry(self) -> None:
        """Nothing runs that could add to the next flush: it need not be waited for."""
        if self._entries:
            self._enough.set()

    async def drained(self, timeout: float) -> bool:
        """Wait until everything is written; False if it took too long, or nobody writes any more."""
        if self._task is None or self._task.done():
            return not len(self)
        self._enough.set()
        await tasks.wait_at_most(self._empty, timeout)
        if self._alone_entries and not self._entries:
            await tasks.wait_at_most(self._empty, ALONE_FOR)
        return not len(self)

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None
        if self._alone_task is not None:
            self._alone.close()
            await tasks.end(self._alone_task)
            self._alone_task = None

    async def _flush_for_ever(self) -> None:
        flushed_at, took = float("-inf"), 0.0
        while True:
            await self._wanted.wait()
            wait = flushed_at + min(LONGEST_FLUSH, max(FLUSH_EVERY, FLUSH_SHARE * took)) - clock.now()
            if wait > 0 and len(self._entries) < BATCH and not self._enough.is_set():
                await tasks.wait_at_most(self._enough, wait)
            self._enough.clear()
            batch = list(islice(self._entries.values(), BATCH))
            started = clock.now()
            try:
                await self._flush(batch)
            except (UnavailableError, psycopg.Error) as error:
                logs.event(
                    logging.WARNING,
                    "finish failed, will send again",
                    waiting=len(self._entries),
                    error=in_words(error),
                )
                await self._link.pause()
            flushed_at = clock.now()
            took = flushed_at - started
            self._tell_room()
            if not self._entries:
                self._wanted.clear()
                self._look_empty()

    def _tell_room(self) -> None:
        if self._was_full and not self.is_full:
            self._was_full = False
            self._events.outbox_has_room()

    def _look_empty(self) -> None:
        if not len(self):
            self._empty.set()

    async def _finish_alone_for_ever(self) -> None:
        while True:
            await self._alone_wanted.wait()
            entry = next(iter(self._alone_entries.values()))
            try:
                await self._finish_alone(entry)
            except (UnavailableError, psycopg.Error) as error:
                facts = entry.facts()
                logs.event(logging.WARNING, "finish failed, will send again", **facts, error=in_words(error))
                await self._alone.pause()
            self._tell_room()
            if not self._alone_entries:
                self._alone_wanted.clear()
                self._look_empty()

    async def _finish_alone(self, entry: Entry) -> None:
        """Send one entry with its follow-ups; what can't be stored as it is has failed, and goes with the batches."""
        key = entry.lease.key
        self._hooks.reach("before_finish")
        try:
            spool = entry.spool
            done = await self._voice.send(
                lambda notify: self._alone.finish(
                    _item(entry, clock.now()),
                    lambda: entry.followups if spool is None else spool.rows(),
                    notify=notify,
                )
            )
        except (ConflictError, SpoolError) as error:
            self._fail(entry, ErrorKind.ERROR, type(error).__name__, f"a follow-up job was refused: {error}")
        except psycopg.Error as error:
            if error.sqlstate == "23514" and not error.diag.constraint_name:
                await self._link.call(upkeep.ensure_partitions)
            elif not _is_poisonous(error) or is_queue_full(error):
                raise
            else:
                self._unstorable(entry, error)
        else:
            self._hooks.reach("after_finish_sent")
            self._metrics.finish_verdict(done.verdict)
            del self._alone_entries[key]
            if done.verdict == "again":
                self._alone_entries[key] = entry
                await self._alone.pause()
            else:
                if done.verdict != "applied":
                    _log(entry, done.verdict)
                self._over([done])
                entry.close()
                if done.batch_id is not None:
                    self._events.batches_touched({done.batch_id})

    async def _flush(self, batch: list[Entry]) -> None:
        """Send one batch; every entry that gets a final verdict leaves the outbox."""
        self._hooks.reach("before_finish")
        started = clock.now()
        items = [_item(entry, started, entry.followups) for entry in batch]
        try:
            verdicts = await self._voice.send(
                lambda notify: self._link.call(work.finish, owner=self._owner, items=items, notify=notify)
            )
        except psycopg.Error as error:
            await self._refused(batch, error)
            return
        self._hooks.reach("after_finish_sent")
        self._metrics.finish_took(clock.now() - started)
        self._events.batches_touched({done.batch_id for done in verdicts if done.batch_id is not None})
        over: list[work.Finished] = []
        is_any_busy = False
        for done in verdicts:
            key = (done.id, done.lease_no)
            self._metrics.finish_verdict(done.verdict)
            entry = self._entries.pop(key, None)
            if done.verdict == "applied":  # nearly all of them
                over.append(done)
                continue
            if done.verdict == "again":
                is_any_busy = True
                if entry is not None:  # to the end of the line: rows that stay locked must not keep others waiting
                    self._entries[key] = entry
                continue
            over.append(done)
            if entry is not None:
                _log(entry, done.verdict)
        again = self._over(over)
        if trim := [id for id, lease_no in again if lease_no % TRIM_EVERY == 0]:
            await self._link.call(upkeep.trim_attempts, trim)
        if is_any_busy:  # somebody holds the row; asking again at once would only spin
            await asyncio.sleep(FLUSH_EVERY)

    def _over(self, verdicts: Sequence[work.Finished]) -> list[Key]:
        """Final verdicts have come; the leases whose jobs go on, as the database knows now."""
        self._events.leases_over([(done.id, done.lease_no) for done in verdicts])
        again: list[Key] = []
        goes_again = False
        for done in verdicts:
            verdict, kind = done.verdict, done.kind
            if verdict == "applied" and kind == "completed":  # nearly all of them
                continue
            goes_again = goes_again or kind in {"retry", "snooze"}
            if verdict != "stale" and kind in {"retry", "snooze", "release"}:
                again.append((done.id, done.lease_no))
        if goes_again:
            self._events.goes_again()
        return again

    async def _refused(self, batch: list[Entry], error: psycopg.Error) -> None:
        code = error.sqlstate or ""
        if code == "23514" and not error.diag.constraint_name:
            logs.event(logging.INFO, "a partition was missing, creating it")
            await self._link.call(upkeep.ensure_partitions)
        elif not _is_poisonous(error):
            # A deadlock, a full disk, a lock held too long: nothing is wrong with the entries.
            raise UnavailableError(f"{in_words(error)} (SQLSTATE {code})") from error
        elif len(batch) > 1:
            middle = len(batch) // 2
            try:
                await self._flush(batch[:middle])
            finally:  # one that nothing can mend must not keep the others back
                await self._flush(batch[middle:])
        elif is_queue_full(error):
            # One of the database's own functions notifies, for a key that is free: nothing is wrong with the entry.
            raise UnavailableError(in_words(error)) from error
        elif batch[0].checkpoint:
            await self._flush([self._without_checkpoint(batch[0], error)])
        else:
            await self._flush([self._unstorable(batch[0], error)])

    def _without_checkpoint(self, entry: Entry, error: psycopg.Error) -> Entry:
        """The same without what may be the reason: the outcome counts more, and an earlier checkpoint stays."""
        first = in_words(error)
        logs.event(logging.ERROR, "checkpoint refused by the database", **entry.facts(), error=first)
        replaced = msgspec.structs.replace(entry, checkpoint="")
        self._entries[entry.lease.key] = replaced
        return replaced

    def _unstorable(self, entry: Entry, error: psycopg.Error) -> Entry:
        """The entry that Postgres refuses, as a failure that it will take; raises if this was one already."""
        if entry.settled.error is not None and entry.settled.error.type == "ResultNotStorable":
            raise UnavailableError(
                f"even the plain failure of job {entry.lease.id} is refused: {in_words(error)}"
            ) from error
        reason = f"Postgres refused to store this outcome: {in_words(error)}"
        return self._fail(entry, ErrorKind.BAD_RESULT, "ResultNotStorable", f"ResultNotStorable: {reason}")

    def _fail(self, entry: Entry, kind: ErrorKind, name: str, message: str) -> Entry:
        """The entry as a failure without follow-ups, in its place."""
        info = ErrorInfo(kind=kind, type=name, message=message[:4096])
        entry.close()
        failed = msgspec.structs.replace(entry, settled=Settled(kind="failed", error=info), followups=(), spool=None)
        self._alone_entries.pop(entry.lease.key, None)
        self.put(failed)
        return failed


def _log(entry: Entry, verdict: Verdict) -> None:
    """Tell of a verdict on what was written by somebody else, or before."""
    facts = {**entry.facts(), "lease_no": entry.lease.lease_no}
    if verdict == "stale":
        logs.event(logging.WARNING, "outcome came too late, dropped", **facts)
    else:
        logs.event(logging.INFO, "outcome was written before, its reply was lost", **facts)


def _is_poisonous(error: psycopg.Error) -> bool:
    """Whether it speaks of the data in a statement, and will come again."""
    return (error.sqlstate or "")[:2] in POISONOUS or isinstance(error, psycopg.DataError)


def _item(entry: Entry, now: float, followups: tuple[JobRow, ...] = ()) -> FinishItem:
    return FinishItem(
        id=entry.lease.id,
        lease_no=entry.lease.lease_no,
        settled=entry.settled,
        usage=entry.usage,
        ran_for=None if entry.started_ago is None else entry.started_ago + now - entry.at,
        lease_age=now - entry.lease.sent_at,
        checkpoint=entry.checkpoint,
        output=entry.output,
        followups=followups,
    )
