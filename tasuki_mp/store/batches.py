"""Statements on batches and on jobs that wait for others; what clients with and without asyncio send and read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.errors import DatabaseError
from tasuki_mp.job import Job
from tasuki_mp.store import produce
from tasuki_mp.store.steps import Step, Steps

CREATE: Final = sql.query("create_batch")
SEAL: Final = sql.query("seal_batch")
JOIN: Final = sql.query("join_batch")
CLOSE: Final = sql.query("close_batch")
LOOK: Final = sql.query("look_batch")
LIST: Final = sql.query("list_batches")
LIVE_IDS: Final = sql.query("batch_live_ids")
RETRY: Final = sql.query("retry_batch")
RESULTS: Final = sql.query("batch_results")
PARTS: Final = sql.query("map_parts")
DEPEND: Final = sql.query("depend")
_OPEN: Final = sql.query("open_batches")

PORTION: Final = 1000
"""Jobs that one statement cancels, or tries again."""

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


class BatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it stands. A failed job that was tried again as another one counts as that one."""

    id: int
    name: str | None
    created_at: datetime
    is_sealed: bool
    """Whether all its jobs were enqueued."""
    total: int
    ended_at: datetime | None
    pending: int
    running: int
    completed: int
    failed: int
    canceled: int
    fired: list[str]
    """Which of its follow-up jobs were due: complete, success, failure."""
    state: str = "{}"

    @property
    def has_ended(self) -> bool:
        return self.ended_at is not None

    @property
    def is_successful(self) -> bool:
        """Whether it has ended and every job has completed."""
        return self.has_ended and not self.failed and not self.canceled


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """A batch in a list; its numbers are there once it has ended."""

    id: int
    name: str | None
    created_at: datetime
    is_sealed: bool
    total: int
    ended_at: datetime | None
    completed: int | None
    failed: int | None
    canceled: int | None


def status(row: tuple[Any, ...] | None) -> BatchStatus | None:
    """What LOOK replied."""
    return None if row is None else BatchStatus(**dict(zip(BatchStatus.__struct_fields__, row, strict=True)))


def line(row: tuple[Any, ...]) -> BatchLine:
    """A row of LIST."""
    return BatchLine(**dict(zip(BatchLine.__struct_fields__, row, strict=True)))


def look(id: int) -> Steps[BatchStatus | None]:
    """How a batch stands; one that is over ends by that."""
    rows = yield Step(LOOK, {"id": id})
    found = status(rows[0]) if rows else None
    if found is not None and found.is_sealed and not found.has_ended and not found.pending and not found.running:
        # Nobody may be there who would: whoever waits for the end brings it about.
        yield Step(CLOSE, {"ids": [id]})
        rows = yield Step(LOOK, {"id": id})
        found = status(rows[0]) if rows else None
    return found


def cancel(id: int) -> Steps[int]:
    """Cancel all jobs of a batch that have not ended; how many there were."""
    canceled, behind = 0, 0
    while rows := (yield Step(LIVE_IDS, {"id": id, "behind": behind, "most": PORTION})):
        ids = [job_id for (job_id,) in rows]
        yield Step(produce.CANCEL, produce.cancel_parameters(ids))
        canceled += len(ids)
        behind = ids[-1]
    yield from look(id)
    return canceled


def retry(id: int) -> Steps[int]:
    """Try the failed and canceled jobs of a batch again; how many."""
    retried = 0
    while True:
        rows = yield Step(RETRY, {"id": id, "most": PORTION})
        count = int(rows[0][0]) if rows else 0
        retried += count
        if count < PORTION:
            return retried


def listed(name: str | None, before: int | None, limit: int) -> Steps[list[BatchLine]]:
    """The newest batches, or those of one name, with ids below `before`."""
    return [line(row) for row in (yield Step(LIST, {"name": name, "before": before, "most": limit}))]


def follow_up(job: Job | None) -> str | None:
    """A job as a batch keeps it until its end. Raises ValueError for what can't be kept."""
    if job is None:
        return None
    row = job.row
    if row.scheduled_at is not None or row.unique is not None or row.needs:
        raise ValueError(f"a follow-up of a batch has no time, unique key or dependency of its own: {job!r}")
    spec = {
        "queue": row.queue,
        "handler": row.handler,
        "payload": msgspec.Raw(row.payload.encode()),
        "priority": row.priority,
        "max_attempts": row.max_attempts,
        "delay": row.delay,
        "limits": msgspec.Raw((row.limits.text or "null").encode()),
        "key": row.key,
    }
    return msgspec.json.encode(spec).decode()


def batch_id(row: tuple[Any, ...] | None) -> int:
    """What CREATE replied."""
    if row is None:
        raise DatabaseError("the database took the batch but gave no id: is there a rule or trigger on tasuki.batch?")
    return int(row[0])


async def close(conn: AsyncConnection, *, ids: Sequence[int]) -> list[tuple[int, int | None]]:
    """End those of these batches that are over; for each, how many jobs are live (to a thousand), None if it had ended."""
    cursor = await conn.execute(CLOSE, {"ids": sorted(ids)})
    return [(int(id), live) for id, live in await cursor.fetchall()]


async def open_batches(conn: AsyncConnection, *, limit: int) -> list[int]:
    """Batches that are over, and that nobody has ended."""
    return [id for (id,) in await (await conn.execute(_OPEN, {"most": limit})).fetchall()]
