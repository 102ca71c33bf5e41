"""Jobs as binary COPY data: the ids that are drawn for them, the bytes, and which queues have to hear of it.

Nothing here talks to Postgres. Whatever a job's neighbours share is encoded once, so that a row costs one small `pack`.
"""

from __future__ import annotations

import bisect
import itertools
import struct
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, overload

import msgspec

from tasuki_mp import sql
from tasuki_mp.errors import DatabaseError
from tasuki_mp.job import JobRow
from tasuki_mp.store import batches, produce

DRAW_IDS: Final = sql.query("draw_ids")
COPY: Final = sql.query("copy_jobs")
TELL: Final = sql.query("tell_copied")
UNBOUND: Final = b"set local statement_timeout = 0"
"""Before a COPY that waits for whoever makes the jobs: that is not the server's time."""

CHUNK_JOBS: Final = 10_000
CHUNK_BYTES: Final = 4 * 1024 * 1024
"""A chunk ends with whichever comes first, so that memory stays bounded also where payloads are large."""
MOST_DRAWN: Final = 100_000
"""Ids drawn at once. What is left of them at the end is lost, so a draw is no larger than what was used before it."""
_PIECE: Final = 64 * 1024
"""Bytes sent at once. The kernel's buffer holds several of them: the server reads while the next one is being made."""

SOON: Final = timedelta(minutes=1)
"""Supervisors are told of jobs that will be due by then; of others they learn by their polls."""
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"
_FIELDS: Final = 11  # those that copy_jobs.sql names, in its order: what jobs share, then the id and the payload
_DUE: Final = struct.Struct("!hiq")
_BIGINT: Final = struct.Struct("!iq")
_TEXT_HEAD: Final = struct.Struct("!i")
_NUMBERS: Final = struct.Struct("!ihii")
_JSONB_HEAD: Final = struct.Struct("!iB")
_JSONB_VERSION: Final = 1
_ID_AND_PAYLOAD_HEAD: Final = struct.Struct("!iqiB")


Steps = Generator[tuple[bytes, dict[str, Any]], list[tuple[Any, ...]], None]
"""Statements with their parameters, each answered with the rows that it returned."""


class IdRanges(Sequence[int]):
    """The ids of jobs that were enqueued together, in the order of the jobs, kept as few ranges."""

    __slots__ = ("_starts", "ranges")

    ranges: tuple[range, ...]
    """None of them empty; ascending, except where the job of another stands for one with a unique key."""

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


def chunk_of(rows: Iterator[JobRow]) -> list[JobRow]:
    """The next rows, as many as fit in memory; none when there are no more."""
    chunk: list[JobRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.payload)
        if len(chunk) >= CHUNK_JOBS or size >= CHUNK_BYTES:
            break
    return chunk


class Draw:
    """Ids that were drawn and not used yet, and the database's clock."""

    __slots__ = ("_drawn_at", "_now", "ranges")

    def __init__(self, rows: Sequence[tuple[Any, ...]], count: int) -> None:
        self.ranges = [range(first, last + 1) for first, last, _ in rows]
        if sum(map(len, self.ranges)) != count:
            raise DatabaseError("the sequence tasuki.job_id_seq gave an id twice: was it set back?")
        self._now: datetime = max(now for _, _, now in rows)
        self._drawn_at = time.monotonic()

    def now(self) -> datetime:
        """The database's clock: what it said with the ids, and the time since."""
        return self._now + timedelta(seconds=time.monotonic() - self._drawn_at)

    def use(self, count: int) -> list[range]:
        """Take the first `count` ids out."""
        used = []
        while count:
            first = self.ranges.pop(0)
            used.append(first[:count])
            if len(first) > count:
                self.ranges.insert(0, first[count:])
            count -= len(used[-1])
        return used


class Copied:
    """What has been copied so far: which ids, and which queues have to hear of it, since when."""

    def __init__(self, batch_id: int | None = None) -> None:
        self.followers: list[int] = []
        """The ids of jobs that were inserted because others are to be followed by them, along each chain."""
        self._batch_id = batch_id
        self._batch = _TEXT_HEAD.pack(-1) if batch_id is None else _BIGINT.pack(8, batch_id)
        self._ranges: list[range] = []
        self._queues: set[str] = set()
        self._soon: set[str] = set()
        """Those with jobs that will be due before long."""
        self._begun = _EPOCH
        self._since: datetime | None = None
        self._keyed: list[tuple[int, JobRow]] = []
        self._block: list[range] = []

    def pieces(self, rows: Iterator[JobRow], draw: Draw) -> Iterator[bytes]:
        """One COPY, piece by piece: of as many rows as there are, or as there are ids.

        Rows with unique keys, or that wait for others, can't be copied in: they are put aside, and must be inserted
        before the next COPY; see `rest`.
        """
        parts = [_COPY_HEADER]
        size = count = aside = 0
        shared: dict[tuple[Any, ...], bytes] = {}
        now = self._begin(draw)
        pack = _ID_AND_PAYLOAD_HEAD.pack
        # The ids come first: when they end, no row has been taken that would have none.
        for job_id, row in zip(itertools.chain.from_iterable(draw.ranges), rows, strict=False):
            count += 1
            if row.unique is not None or row.needs or row.followers:
                self._keyed.append((job_id, row))
                aside += len(row.payload)
                if len(self._keyed) >= CHUNK_JOBS or aside >= CHUNK_BYTES:
                    break
                continue
            key = (
                *(row.queue, row.handler, row.priority, row.max_attempts, row.limits),
                *(row.key, row.schedule, row.scheduled_at, row.delay),
            )
            common = shared.get(key)
            if common is None:
                common = shared[key] = self._shared(row, now)
            payload = row.payload.encode()
            length = len(payload)
            parts += (common, pack(8, job_id, length + 1, _JSONB_VERSION), payload)
            size += length + 100
            if size >= _PIECE:
                yield b"".join(parts)
                parts.clear()
                shared.clear()
                size, now = 0, draw.now()
        self._block = draw.use(count)
        if not self._keyed:
            self._ranges += self._block
        parts.append(_COPY_TRAILER)
        yield b"".join(parts)

    def rest(self) -> Steps:
        """Statements to send for the rows that were put aside; each is answered with its reply. Raises ConflictError."""
        if not self._keyed:
            return
        drawn, rows = zip(*self._keyed, strict=True)
        self._keyed = []
        standing = dict(zip(drawn, (yield from self._insert(drawn, rows)), strict=True))
        ids = (standing.get(job_id, job_id) for job_id in itertools.chain.from_iterable(self._block))
        self._ranges += IdRanges(range(job_id, job_id + 1) for job_id in ids).ranges

    def _insert(
        self, drawn: Sequence[int | None], rows: Sequence[JobRow]
    ) -> Generator[tuple[bytes, dict[str, Any]], list[tuple[Any, ...]], list[int]]:
        """Insert rows and whatever follows them; the ids of the jobs that stand for them."""
        for row in rows:
            self._note(row, row.scheduled_at or self._begun + timedelta(seconds=row.delay), self._begun)
        reply = yield produce.ENQUEUE_KEYED, produce.keyed_parameters(rows, drawn, is_told=False)
        standing = [produce.standing(answer) for answer in reply]
        new = [job_id for job_id, is_new in standing if is_new]
        if new and self._batch_id is not None:
            yield batches.JOIN, {"id": self._batch_id, "ids": new}
        for row, (job_id, is_new) in zip(rows, standing, strict=True):
            if not is_new:
                continue  # what stands has its own needs and followers
            if row.needs:
                yield batches.DEPEND, {"id": job_id, "ids": list(row.needs), "on_failure": row.on_need_failed}
            if row.followers:
                followers = [msgspec.structs.replace(each, needs=(*each.needs, job_id)) for each in row.followers]
                place = len(self.followers)  # before those that follow them
                self.followers[place:place] = yield from self._insert([None] * len(followers), followers)
        return [job_id for job_id, _ in standing]

    def _begin(self, draw: Draw) -> datetime:
        now = self._begun = draw.now()
        self._since = self._since or now
        return now

    def _note(self, row: JobRow, due: datetime, now: datetime) -> None:
        """Somebody may have to hear of this."""
        if due <= now:
            self._queues.add(row.queue)
        elif due < now + SOON:
            self._soon.add(row.queue)

    def _shared(self, row: JobRow, now: datetime) -> bytes:
        """The fields that many jobs share."""
        due = row.scheduled_at or now + timedelta(seconds=row.delay)
        self._note(row, due, now)
        return b"".join(
            (
                _DUE.pack(_FIELDS, 8, (due - _EPOCH) // _MICROSECOND),
                _text(row.queue),
                _text(row.handler),
                _NUMBERS.pack(2, row.priority, 4, row.max_attempts),
                _jsonb(row.limits.text),
                _text(row.key),
                _text(row.schedule),
                self._batch,
            )
        )

    @property
    def tell_parameters(self) -> dict[str, Any] | None:
        """The parameters of TELL; None when nobody has to be told, because nothing is due before long."""
        if not self._queues and not self._soon:
            return None
        return {"queues": sorted(self._queues), "soon": sorted(self._soon), "since": self._since}

    @property
    def ids(self) -> IdRanges:
        return IdRanges(self._ranges)

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def next_draw(self) -> int:
        """How many ids to draw for the jobs that follow."""
        return max(1, min(len(self), MOST_DRAWN))


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
