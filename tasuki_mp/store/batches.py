"""Statements on batches and on jobs that wait for others; what clients with and without asyncio send and read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.errors import DatabaseError
from tasuki_mp.job import Job, JobRow

CREATE: Final = sql.query("create_batch")
SEAL: Final = sql.query("seal_batch")
JOIN: Final = sql.query("join_batch")
CLOSE: Final = sql.query("close_batch")
LOOK: Final = sql.query("look_batch")
LIST: Final = sql.query("list_batches")
NEWEST: Final = sql.query("newest_batch")
LIVE_IDS: Final = sql.query("batch_live_ids")
RESULTS: Final = sql.query("batch_results")
PARTS: Final = sql.query("map_parts")
DEPEND: Final = sql.query("depend")
_OPEN: Final = sql.query("open_batches")

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
    """Which of its follow-up jobs were enqueued: complete, success, failure."""
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


def follow_up(job: Job | None) -> str | None:
    """A job as a batch keeps it until its end, with those that follow it. Raises ValueError for what can't be kept."""
    return None if job is None else msgspec.json.encode(_spec(job.row, job)).decode()


def _spec(row: JobRow, job: Job) -> dict[str, Any]:
    if row.scheduled_at is not None or row.unique is not None or row.needs:
        raise ValueError(f"a follow-up of a batch has no time, unique key or dependency of its own: {job!r}")
    return {
        "queue": row.queue,
        "handler": row.handler,
        "payload": msgspec.Raw(row.payload.encode()),
        "priority": row.priority,
        "max_attempts": row.max_attempts,
        "delay": row.delay,
        "limits": msgspec.Raw((row.limits.text or "null").encode()),
        "key": row.key,
        "on_need_failed": row.on_need_failed,
        "followers": [_spec(follower, job) for follower in row.followers],
    }


def naming(name: str) -> dict[str, Any]:
    """The parameters of NEWEST: digits are an id, or else a name."""
    return {"name": name, "id": int(name) if re.fullmatch(r"[0-9]{1,18}", name) else None}


def sealing(id: int | None, count: int, *, is_sealed: bool) -> dict[str, Any]:
    """The parameters of SEAL: so many jobs were added, and whether these were the last."""
    return {"id": id, "count": count, "is_sealed": is_sealed, "state": None}


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
