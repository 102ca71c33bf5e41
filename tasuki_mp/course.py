"""What a durable map does next, as data: which jobs to insert, what to ask, which results to give. No connection, no waiting.

Items are enqueued in portions, and between two of them what has finished is given: the first results come long before the
last item is there, and an endless iterable may be mapped. Several items travel in one job, so that what a job costs does not
matter: its payload is a list of payloads, and its result the list of their results. How many is measured: the first jobs
carry one item each, and those that follow so many that a job takes about half a second and its result fits well into the
limit. A job whose result was too large all the same is cut into smaller ones, which try it again. `mapping` drives it, with
and without asyncio.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias

import msgspec

from tasuki_mp import sql
from tasuki_mp.errors import MapError
from tasuki_mp.handlers import Handler
from tasuki_mp.job import Job, JobRow
from tasuki_mp.store import batches
from tasuki_mp.store.steps import Pause, Rows, Step, Steps

_SPLIT: Final = sql.query("split_map_job")
_LOCK: Final = sql.query("lock_batch")

PROBES: Final = 8
"""Jobs of one item each that are enqueued first, to learn how long an item takes and how large its result is."""
PROBE_FOR: Final = 1.0
"""Seconds after which whatever they have shown must do; if nothing, an item is a job."""
CHUNK_SECONDS: Final = 0.5
LARGEST_CHUNK: Final = 1000
CHUNK_BYTES: Final = 256 * 1024
"""Payload that one job carries at most, unless a single item is larger."""
ROOM: Final = 0.5
"""The share of the limit that the result of a job should take: items differ."""
PIECES: Final = 4
"""Into so many jobs one is cut whose result was too large."""
JOBS_AT_ONCE: Final = 500
"""Jobs inserted in one transaction."""
ENQUEUE_FOR: Final = 0.2
"""Seconds of enqueueing after which results that have come are given."""
AHEAD: Final = 100_000
"""Jobs that are enqueued at most before their results were given: an endless map must not fill the database."""
WINDOW: Final = 2000
"""Jobs whose results are asked for at once."""
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5

Chunk = int | Literal["auto"]


class Part(msgspec.Struct, frozen=True):
    """One job of a map: where its items begin, and how many there are."""

    job_id: int
    first: int
    count: int


class Add(msgspec.Struct, frozen=True):
    """Insert these jobs into the map's batch, in one transaction; the reply is a row with the id of each."""

    rows: list[JobRow]
    is_last: bool


class Give(msgspec.Struct, frozen=True):
    """Hand these results to whoever iterates."""

    values: list[Any]


Effects: TypeAlias = Generator[Step | Pause | Add | Give, Rows, None]


class Course:
    """One map on its way. Raises ValueError and TypeError for what can't be mapped."""

    def __init__(
        self,
        handler: Handler[..., Any],
        items: Iterable[Any],
        *,
        chunk: Chunk,
        is_ordered: bool,
        id: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(handler, Handler):
            raise TypeError(f"map needs a handler, a function under @app.handler, not {handler!r:.100}")
        if chunk != "auto" and (type(chunk) is not int or not 1 <= chunk <= 100_000):
            raise ValueError(f"chunk is 'auto' or a whole number from 1 to 100000, not {chunk!r}")
        self.handler = handler
        self.id = id
        """Of its batch; None until it is begun."""
        self.taken = 0
        """Items that are in the database."""
        self.given = 0
        """Items whose results were given."""
        self.is_sealed = False
        """Whether the last item is in the database."""
        self._chunk = chunk
        self._is_ordered = is_ordered
        self._clock = clock
        self._given_items = items
        self._items: Iterator[Any] = iter(items)
        self._is_known = id is None
        self._open: list[str] = []
        """Payloads of the job that is being filled."""
        self._weight = 0
        self._template: JobRow | None = None
        """What that job has besides its payload."""
        self._waiting: dict[int, Part] = {}
        self._ready: dict[int, tuple[Part, list[Any]]] = {}
        """Results that have come, by their first item."""
        self._seconds = 0.0
        self._measured = 0
        self._bytes_an_item = 0.0
        self._probing_until = 0.0
        self._enqueued_at = 0.0

    @property
    def name(self) -> str:
        """That of its batch."""
        return f"map {self.handler.name}"[:200]

    @property
    def total(self) -> int | None:
        """How many items there are; None while nobody knows."""
        if self.is_sealed:
            return self.taken
        length = getattr(self._given_items, "__len__", None)
        return None if length is None else max(length(), self.taken)

    def begin(self) -> Steps[int]:
        """The batch, made at the first use; or what an earlier run has left of it. Its id."""
        if self.id is None:
            parameters = {
                **dict.fromkeys(("on_complete", "on_success", "on_failure")),
                "name": self.name,
                "state": "{}",
            }
            rows = yield Step(batches.CREATE, parameters)
            self.id = batches.batch_id(rows[0] if rows else None)
        elif not self._is_known:
            yield from self._take_up(self.id)
        self._is_known = True
        return self.id

    def effects(self) -> Effects:
        """Everything up to the last result."""
        yield from self.begin()
        pause = FIRST_PAUSE
        while True:
            is_filling = self._may_enqueue()
            if is_filling:
                yield from self._enqueue()
            has_come = yield from self._collect()
            yield from self._give()
            if self.is_sealed and not self._waiting:
                return
            if has_come:
                pause = FIRST_PAUSE
            elif not is_filling or not self._may_enqueue():
                yield Pause(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)

    # ── items in ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_up(self, id: int) -> Steps[None]:
        """What an earlier run has enqueued. A failed job that was tried again is found as those that did, in its place."""
        looked = yield Step(batches.LOOK, {"id": id})
        status = batches.status(looked[0] if looked else None)
        if status is None or status.name != self.name:
            raise MapError(id, f"there is no map of handler {self.handler.name!r} with the id {id}")
        self.is_sealed = status.is_sealed
        place: dict[int, Part] = {}
        rest: dict[int, Part] = {}
        for job_id, count, retry_of in (yield Step(batches.PARTS, {"id": id})):
            whole = rest[retry_of] if retry_of in rest else place.pop(retry_of, None)
            if whole is None:
                place[job_id] = Part(job_id, self.taken, count)
                self.taken += count
            elif count <= whole.count:
                place[job_id] = Part(job_id, whole.first, count)
                rest[retry_of] = Part(retry_of, whole.first + count, whole.count - count)
        self._waiting = {part.job_id: part for part in sorted(place.values(), key=lambda part: part.first)}
        self._items = iter(()) if self.is_sealed else itertools.islice(self._items, self.taken, None)

    def _may_enqueue(self) -> bool:
        is_probing = self._waiting and self._clock() < self._probing_until
        return not self.is_sealed and not is_probing and len(self._waiting) + len(self._ready) < AHEAD

    def _enqueue(self) -> Effects:
        until = self._clock() + ENQUEUE_FOR
        while self._may_enqueue():
            is_probe = self._chunk == "auto" and not self._measured and not self._probing_until
            rows, counts = self._portion(PROBES if is_probe else JOBS_AT_ONCE, until)
            ids: Rows = ()
            if rows or self.is_sealed:
                ids = yield Add(rows, self.is_sealed)
            for (job_id,), count in zip(ids, counts, strict=True):
                self._waiting[job_id] = Part(job_id, self.taken, count)
                self.taken += count
            self._enqueued_at = self._clock()
            if is_probe:
                self._probing_until = self._enqueued_at + PROBE_FOR
            if self._enqueued_at >= until:
                return

    def _portion(self, most: int, until: float) -> tuple[list[JobRow], list[int]]:
        """Up to that many jobs, and how many items each has; fewer when the time is over or there are no more items."""
        rows: list[JobRow] = []
        counts: list[int] = []

        def close() -> None:
            if self._open and self._template is not None:
                rows.append(msgspec.structs.replace(self._template, payload=f"[{','.join(self._open)}]"))
                counts.append(len(self._open))
                self._open, self._weight = [], 0

        size = self._size()
        for item in self._items:
            row = self._row(item)
            template = msgspec.structs.replace(row, payload="")
            if template != self._template or self._weight + len(row.payload) > CHUNK_BYTES:
                close()
            self._template = template
            self._open.append(row.payload)
            self._weight += len(row.payload)
            if len(self._open) >= size:
                close()
            if len(rows) >= most:
                return rows, counts
            if self._clock() >= until:
                break
        else:
            self.is_sealed = True
        if self.is_sealed or self._chunk == "auto":
            close()
        return rows, counts

    def _row(self, item: Any) -> JobRow:
        job = item if isinstance(item, Job) else self.handler.job(item)
        row = job.row
        if row.handler != self.handler.name:
            raise ValueError(f"a map of {self.handler.name!r} was given a job of {row.handler!r}")
        if not row.is_plain:
            raise ValueError(f"{job!r}: a job of a map can't be unique, wait for others or be followed")
        return row

    def _size(self) -> int:
        """How many items a job carries."""
        if self._chunk != "auto":
            return self._chunk
        if not self._measured:
            return 1
        by_time = CHUNK_SECONDS / max(self._seconds / self._measured, 1e-6)
        by_result = ROOM * self.handler.max_result / max(self._bytes_an_item, 1.0)
        return max(1, min(LARGEST_CHUNK, int(by_time), int(by_result)))

    # ── results out ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> Generator[Step | Pause | Add | Give, Rows, bool]:
        """Ask for what has ended; whether anything has."""
        if not self._waiting:
            return False
        ids = list(itertools.islice(self._waiting, WINDOW))
        rows = yield Step(batches.RESULTS, {"id": self.id, "ids": ids})
        for job_id, status, result, error, seconds in rows:
            part = self._waiting.pop(job_id)
            said = msgspec.json.decode(error) if error else {}
            if status == "completed":
                self._learn(part, result, seconds)
                values: list[Any] = [None] * part.count if result is None else msgspec.json.decode(result)
                self._ready[part.first] = part, values
            elif part.count > 1 and said.get("type") == "ResultTooLarge":
                yield from self._split(part)
            else:
                raise self._error(part, status, said)
        return bool(rows)

    def _learn(self, part: Part, result: str | None, seconds: str | None) -> None:
        if seconds is not None:
            self._seconds += float(seconds)
            self._measured += part.count
        self._bytes_an_item = max(self._bytes_an_item, len((result or "").encode()) / part.count)

    def _split(self, part: Part) -> Generator[Step | Pause | Add | Give, Rows, None]:
        size = -(-part.count // PIECES)
        pieces = yield Step(_SPLIT, {"id": self.id, "job_id": part.job_id, "size": size}, first=_LOCK)
        if not pieces:
            raise MapError(
                self.id or 0,
                f"job {part.job_id} of the map ({_items(part)}), whose result was too large, was tried again by somebody "
                f"else; take the map up again with id={self.id}",
            )
        first = part.first
        for job_id, count, _ in pieces:
            self._waiting[job_id] = Part(job_id, first, count)
            first += count

    def _give(self) -> Effects:
        while self._ready:
            first = self.given if self._is_ordered else next(iter(self._ready))
            if first not in self._ready:
                return
            part, values = self._ready.pop(first)
            self.given += part.count
            yield Give(values)
            # Whoever takes results slowly must not keep the others' work waiting.
            if self._may_enqueue() and self._clock() - self._enqueued_at > ENQUEUE_FOR:
                yield from self._enqueue()

    def _error(self, part: Part, status: str, said: dict[str, Any]) -> MapError:
        reason = f": {said.get('type')}: {said.get('message')}" if said else ""
        return MapError(self.id or 0, f"job {part.job_id} of the map ({_items(part)}) has {status}{reason}")


def _items(part: Part) -> str:
    return f"item {part.first}" if part.count == 1 else f"items {part.first} to {part.first + part.count - 1}"
