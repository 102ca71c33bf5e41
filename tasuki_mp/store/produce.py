"""What producers send: statements, their parameters and the COPY data, for clients with and without asyncio alike.

Nothing here talks to Postgres: the clients do, each in its own way, and read the replies with the functions here.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, overload

import psycopg
from psycopg import errors as pg

from tasuki_mp import sql
from tasuki_mp.errors import ConflictError, DatabaseError, SchemaError
from tasuki_mp.job import Job, JobRow, State
from tasuki_mp.limits import Limits

CancelVerdict = Literal["canceled", "requested", "finished", "unknown"]
"""What came of a cancel: done, since the job was pending; asked for, since it runs; too late; no such job."""

ENQUEUE: Final = sql.query("enqueue")
DRAW_IDS: Final = sql.query("draw_ids")
ENQUEUE_KEYED: Final = sql.query("enqueue_keyed")
COPY: Final = sql.query("copy_jobs")
TELL: Final = sql.query("tell_copied")
CANCEL: Final = sql.query("cancel_each")
STATUS: Final = sql.query("job_status")

CHUNK_JOBS: Final = 10_000
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""A chunk ends with whichever comes first, so that memory stays bounded also where payloads are large."""
TELL_EVERY: Final = 0.04
"""Seconds between two notifications of one queue by one client in autocommit. Supervisors look again 50 ms after each
notification, so what was enqueued in between is found then."""

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"
_FIELDS: Final = 9  # those that copy_jobs.sql names, in its order
_ROW_HEAD: Final = struct.Struct("!hiqiq")
_TEXT_HEAD: Final = struct.Struct("!i")
_NUMBERS: Final = struct.Struct("!ihii")
_JSONB_HEAD: Final = struct.Struct("!iB")
_JSONB_VERSION: Final = 1


class IdRanges(Sequence[int]):
    """The ids of jobs that were enqueued together, in the order of the jobs, kept as few ranges."""

    __slots__ = ("_starts", "ranges")

    ranges: tuple[range, ...]
    """Ascending, and none of them empty."""

    def __init__(self, ranges: Iterable[range] = ()) -> None:
        merged: list[range] = []
        for each in ranges:
            if merged and merged[-1].stop == each.start:
                merged[-1] = range(merged[-1].start, each.stop)
            elif each:
                merged.append(each)
        self.ranges = tuple(merged)
        starts, count = [], 0
        for each in merged:
            starts.append(count)
            count += len(each)
        self._starts = (*starts, count)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[int]:
        for each in self.ranges:
            yield from each

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and any(value in each for each in self.ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        found = bisect.bisect_right(self._starts, position) - 1
        return self.ranges[found][position - self._starts[found]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdRanges) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        shown = ", ".join(f"{each.start}…{each.stop - 1}" for each in self.ranges[:5])
        return f"<{len(self)} ids: {shown}{', …' if len(self.ranges) > 5 else ''}>"


def enqueue_parameters(job: Job, *, is_told: bool) -> dict[str, Any]:
    """The parameters of ENQUEUE; `is_told` says whether supervisors are to be notified."""
    row = row_of(job)
    return {
        "queue": row.queue,
        "handler": row.handler,
        "payload": row.payload,
        "priority": row.priority,
        "max_attempts": row.max_attempts,
        "limits": row.limits.text,
        "key": row.key,
        "at": row.scheduled_at,
        "delay": float(row.delay),
        "is_told": is_told,
    }


def enqueueing(job: Job, *, is_told: bool) -> tuple[bytes, dict[str, Any]]:
    """The statement that inserts this job, and its parameters."""
    row = row_of(job)
    if row.unique is None:
        return ENQUEUE, enqueue_parameters(job, is_told=is_told)
    return ENQUEUE_KEYED, keyed_parameters([row], [None], is_told=is_told)


def row_of(job: Job) -> JobRow:
    """What a job inserts. Raises TypeError for anything else, with the usual mistake in mind."""
    # Whoever has no type checker: a handler's plain call runs it and gives its result.
    if not isinstance(job, Job):
        raise TypeError(f"{job!r:.200} is no Job; jobs are made by handler.job(...)")
    return job.row


def chunks(jobs: Iterable[Job]) -> Iterator[list[JobRow]]:
    """The jobs, in portions that fit in memory; none of them empty."""
    chunk: list[JobRow] = []
    size = 0
    for job in jobs:
        row = row_of(job)
        chunk.append(row)
        size += len(row.payload)
        if len(chunk) >= CHUNK_JOBS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class Draw:
    """The ids drawn for one chunk, and the database's clock then."""

    __slots__ = ("now", "ranges")

    def __init__(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.ranges = [range(first, last + 1) for first, last, _ in rows]
        self.now: datetime = max(now for _, _, now in rows)


class Portion(NamedTuple):
    """One chunk of jobs as it is sent: most by COPY, those with unique keys by a statement."""

    data: bytes | None
    parameters: dict[str, Any] | None
    keyed: list[int]
    """Where in the chunk the latter stand."""


def keyed_parameters(rows: Sequence[JobRow], ids: Sequence[int | None], *, is_told: bool) -> dict[str, Any]:
    """The parameters of ENQUEUE_KEYED; an id that is None is drawn there."""
    return {
        "ids": list(ids),
        "queues": [row.queue for row in rows],
        "handlers": [row.handler for row in rows],
        "payloads": [row.payload for row in rows],
        "priorities": [row.priority for row in rows],
        "most_attempts": [row.max_attempts for row in rows],
        "ats": [row.scheduled_at for row in rows],
        "delays": [float(row.delay) for row in rows],
        "limits": [row.limits.text for row in rows],
        "keys": [row.key for row in rows],
        "unique_keys": [row.unique.key if row.unique else None for row in rows],
        "unique_for": [row.unique.seconds if row.unique else None for row in rows],
        "on_conflicts": [row.unique.on_conflict if row.unique else None for row in rows],
        "is_told": is_told,
    }


def standing(row: tuple[Any, ...] | None) -> tuple[int, bool]:
    """The id of the job that stands, and whether it is new, from a row of ENQUEUE_KEYED. Raises ConflictError."""
    if row is None:
        raise DatabaseError("the database gave no answer for a job with a unique key")
    standing_id, outcome = int(row[0]), row[1]
    if outcome == "conflict":
        raise ConflictError(standing_id)
    return standing_id, outcome == "new"


class Copied:
    """What has been copied so far: which ids, and which queues have to hear of it, since when."""

    def __init__(self) -> None:
        self._ranges: list[range] = []
        self._queues: set[str] = set()
        self._since: datetime | None = None
        self._pending: list[int] = []

    def portion(self, chunk: Sequence[JobRow], draw: Draw) -> Portion:
        """What to send for the chunk, under the ids drawn for it: jobs with unique keys can't be copied in."""
        self._since = self._since or draw.now
        ids = IdRanges(draw.ranges)
        keyed = [index for index, row in enumerate(chunk) if row.unique is not None]
        if not keyed:
            self._ranges.extend(draw.ranges)
            return Portion(self._data(chunk, draw, ids), None, keyed)
        places = set(keyed)
        plain = [index for index in range(len(chunk)) if index not in places]
        self._pending = list(ids)
        data = self._data([chunk[index] for index in plain], draw, [ids[index] for index in plain]) if plain else None
        rows = [chunk[index] for index in keyed]
        self._queues.update(row.queue for row in rows if row.scheduled_at is None and not row.delay)
        parameters = keyed_parameters(rows, [ids[index] for index in keyed], is_told=False)
        return Portion(data, parameters, keyed)

    def stood(self, portion: Portion, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take in the reply of ENQUEUE_KEYED to a portion. Raises ConflictError."""
        for index, row in zip(portion.keyed, rows, strict=True):
            self._pending[index] = standing(row)[0]
        self._ranges.extend(range(job_id, job_id + 1) for job_id in self._pending)
        self._pending = []

    def _data(self, chunk: Sequence[JobRow], draw: Draw, ids: Iterable[int]) -> bytes:
        """The rows as COPY data with these ids."""
        now = (draw.now - _EPOCH) // _MICROSECOND
        parts = [_COPY_HEADER]
        constants: dict[tuple[str, str, int, int, Limits, str | None], bytes] = {}
        for row, job_id in zip(chunk, ids, strict=True):
            due = now
            if row.scheduled_at is not None:
                due = (row.scheduled_at - _EPOCH) // _MICROSECOND
            elif row.delay:
                due = now + round(row.delay * 1e6)
            if due <= now:
                self._queues.add(row.queue)
            key = (row.queue, row.handler, row.priority, row.max_attempts, row.limits, row.key)
            constant = constants.get(key)
            if constant is None:
                constant = constants[key] = _constant(*key)
            payload = row.payload.encode()
            parts += (
                _ROW_HEAD.pack(_FIELDS, 8, job_id, 8, due),
                constant,
                _JSONB_HEAD.pack(len(payload) + 1, _JSONB_VERSION),
                payload,
            )
        parts.append(_COPY_TRAILER)
        return b"".join(parts)

    @property
    def tell_parameters(self) -> dict[str, Any] | None:
        """The parameters of TELL; None when nobody has to be told, because nothing is due yet."""
        return {"queues": sorted(self._queues), "since": self._since} if self._queues else None

    @property
    def ids(self) -> IdRanges:
        return IdRanges(self._ranges)


def _constant(queue: str, handler: str, priority: int, max_attempts: int, limits: Limits, key: str | None) -> bytes:
    """The fields that many jobs share, as COPY data."""
    texts = (text.encode() for text in (queue, handler))
    names = b"".join(_TEXT_HEAD.pack(len(text)) + text for text in texts)
    return names + _NUMBERS.pack(2, priority, 4, max_attempts) + _jsonb(limits.text) + _text(key)


def _text(text: str | None) -> bytes:
    if text is None:
        return _TEXT_HEAD.pack(-1)
    content = text.encode()
    return _TEXT_HEAD.pack(len(content)) + content


def _jsonb(text: str | None) -> bytes:
    if text is None:
        return _TEXT_HEAD.pack(-1)
    content = text.encode()
    return _JSONB_HEAD.pack(len(content) + 1, _JSONB_VERSION) + content


def job_id(row: tuple[Any, ...] | None) -> int:
    """What ENQUEUE replied."""
    if row is None:
        raise DatabaseError("the database took the job but gave no id: is there a rule or trigger on tasuki.job?")
    return int(row[0])


def cancel_parameters(ids: Iterable[int]) -> dict[str, Any]:
    """The parameters of CANCEL: locked in the order of ids, each once."""
    return {"ids": sorted(set(ids))}


def verdicts(rows: Iterable[tuple[Any, ...]]) -> dict[int, CancelVerdict]:
    """What CANCEL replied."""
    return {job_id: verdict for job_id, verdict in rows}  # noqa: C416  dict() would lose the types


def state(row: tuple[Any, ...] | None) -> State | None:
    """What STATUS replied."""
    return State(row[0]) if row is not None else None


def explain(error: psycopg.Error) -> DatabaseError:
    """The error in words that say what to do."""
    reason = " ".join(str(error).split()) or type(error).__name__
    match error:
        case pg.UndefinedTable() | pg.UndefinedFunction() | pg.InvalidSchemaName() | pg.UndefinedColumn():
            return SchemaError(f"this database lacks what tasuki-mp needs: run `tasuki-mp migrate` on it ({reason})")
        case pg.InFailedSqlTransaction():
            return DatabaseError(f"the transaction has failed before: roll it back, then try again ({reason})")
        case pg.ReadOnlySqlTransaction():
            return DatabaseError(f"the server, or the transaction, is read-only: write to the primary ({reason})")
        case pg.InsufficientPrivilege():
            return DatabaseError(f"the role may not do this: grant it the rights on the schema tasuki ({reason})")
        case pg.CheckViolation() if error.diag.constraint_name == "job_payload_size":
            return DatabaseError(f"the payload is too large for the database: store the data elsewhere ({reason})")
        case psycopg.OperationalError() if error.sqlstate is None:
            return DatabaseError(f"can't reach the database: {reason}")
        case _:
            code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
            return DatabaseError(f"the database refused: {reason}{code}")
