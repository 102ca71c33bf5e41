"""A durable map: a handler over many items, as jobs of one batch, with its results in order or as they come.

Several items travel in one job, so that what a job costs does not matter: its payload is a list of payloads, and its result
the list of their results. How many is measured: the first jobs carry one item each, and the rest is cut so that a job takes
about half a second. All of it is in the database soon, so whoever waits may be interrupted and come back by the batch's id.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import psycopg

from tasuki_mp.errors import MapError
from tasuki_mp.job import Job, JobRow
from tasuki_mp.store import batches, bulk
from tasuki_mp.store.bulk import Intake, cursor, explained

if TYPE_CHECKING:
    from tasuki_mp.client import Client
    from tasuki_mp.handlers import Handler

PROBES: Final = 8
"""Jobs of one item each that are enqueued first, to learn how long an item takes."""
PROBE_FOR: Final = 1.0
"""Seconds after which whatever they have shown must do; if nothing, an item is a job."""
CHUNK_SECONDS: Final = 0.5
LARGEST_CHUNK: Final = 1000
CHUNK_BYTES: Final = 256 * 1024
"""Payload that one job carries at most, unless a single item is larger."""
JOBS_AT_ONCE: Final = 500
"""Jobs inserted in one transaction."""
WINDOW: Final = 2000
"""Jobs whose results are asked for at once."""
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5


class Part(msgspec.Struct, frozen=True):
    """One job of a map: where its items begin, and how many there are."""

    job_id: int
    first: int
    count: int


class Map(Iterator[Any]):
    """The results of a map, to be iterated over; `id` takes it up again."""

    def __init__(
        self,
        client: Client,
        handler: Handler[..., Any],
        items: Iterable[Any],
        *,
        chunk: int | Literal["auto"] = "auto",
        ordered: bool = True,
        progress: bool | None = None,
        id: int | None = None,
    ) -> None:
        if chunk != "auto" and (type(chunk) is not int or not 1 <= chunk <= 100_000):
            raise ValueError(f"chunk is 'auto' or a whole number from 1 to 100000, not {chunk!r}")
        self._client = client
        self._handler = handler
        self._chunk = chunk
        self._is_ordered = ordered
        self._parts: deque[Part] = deque()
        self._taken = 0
        """Items that are in the database."""
        self._is_sealed = False
        self._seconds_an_item: float | None = None
        self.id = self._begin() if id is None else id
        if id is not None:
            self._take_up()
        self._items = iter(items) if self._is_sealed else itertools.islice(items, self._taken, None)
        self._show = sys.stderr.isatty() if progress is None else progress
        self._results = self._run()

    def __next__(self) -> Any:
        return next(self._results)

    def __repr__(self) -> str:
        return f"Map({self.id}, {self._handler.name})"

    # ── items in ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> int:
        parameters = {
            "name": f"map {self._handler.name}"[:200],
            "on_complete": None,
            "on_success": None,
            "on_failure": None,
            "state": "{}",
        }
        with self._client.connection(None) as connection, explained():
            return batches.batch_id(cursor(connection).execute(batches.CREATE, parameters).fetchone())

    def _take_up(self) -> None:
        """What an earlier run has enqueued. A failed job that was tried again is found as that one, in its place."""
        with self._client.connection(None) as connection, explained():
            status = batches.status(cursor(connection).execute(batches.LOOK, {"id": self.id}).fetchone())
            rows = cursor(connection).execute(batches.PARTS, {"id": self.id}).fetchall()
        if status is None or status.name != f"map {self._handler.name}"[:200]:
            raise MapError(self.id, f"there is no map of handler {self._handler.name!r} with the id {self.id}")
        self._is_sealed = status.is_sealed
        place: dict[int, Part] = {}
        for job_id, count, retry_of in rows:
            if retry_of in place:
                before = place.pop(retry_of)
                place[job_id] = Part(job_id, before.first, before.count)
            else:
                place[job_id] = Part(job_id, self._taken, count)
                self._taken += count
        self._parts.extend(sorted(place.values(), key=lambda part: part.first))

    def _add(self, connection: psycopg.Connection[Any], chunks: list[list[str]], *, is_last: bool) -> None:
        """Insert jobs with these items, in one transaction."""
        sample = self._sample
        with bulk.transaction(connection), explained():
            if chunks and sample is not None:
                rows = [msgspec.structs.replace(sample, payload=f"[{','.join(chunk)}]") for chunk in chunks]
                ids = bulk.insert(connection, Intake(rows), is_ours=False, batch_id=self.id).ids
                for job_id, chunk in zip(ids, chunks, strict=True):
                    self._parts.append(Part(job_id, self._taken, len(chunk)))
                    self._taken += len(chunk)
            sealing = {"id": self.id, "count": len(chunks), "is_sealed": is_last, "state": None}
            cursor(connection).execute(batches.SEAL, sealing)
        self._is_sealed = is_last

    _sample: JobRow | None = None
    """A job of the handler, whose queue and the like all of them have."""

    def _payloads(self) -> Iterator[str]:
        for item in self._items:
            job = item if isinstance(item, Job) else self._handler.job(item)
            if job.row.handler != self._handler.name:
                raise ValueError(f"a map of {self._handler.name!r} was given a job of {job.row.handler!r}")
            self._sample = self._sample or job.row
            yield job.row.payload

    def _enqueue_all(self) -> None:
        payloads = self._payloads()
        with self._client.connection(None) as connection:
            if self._chunk == "auto":
                self._add(connection, [[payload] for payload in itertools.islice(payloads, PROBES)], is_last=False)
                self._measure(connection)
            cut = _chunked(payloads, self._size())
            while chunks := list(itertools.islice(cut, JOBS_AT_ONCE)):
                self._add(connection, chunks, is_last=False)
            self._add(connection, [], is_last=True)

    def _size(self) -> int:
        if self._chunk != "auto":
            return self._chunk
        if self._seconds_an_item is None:
            return 1
        return max(1, min(LARGEST_CHUNK, int(CHUNK_SECONDS / max(self._seconds_an_item, 1e-6))))

    def _measure(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the first results, as long as it is worth it."""
        deadline = time.monotonic() + PROBE_FOR
        pause = FIRST_PAUSE
        while self._parts and time.monotonic() < deadline:
            rows = self._ask([part.job_id for part in self._parts], connection)
            times = [float(seconds) for *_, seconds in rows if seconds is not None]
            if times:
                self._seconds_an_item = sum(times) / len(times)
                if len(rows) == len(self._parts):
                    return
            time.sleep(pause)  # noqa: TID251  between two looks: nobody tells of single jobs
            pause = min(LONGEST_PAUSE, pause * 1.5)

    # ── results out ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> Iterator[Any]:
        try:
            if not self._is_sealed:
                self._enqueue_all()
            with self._bar() as advance:
                for part, results in self._finished():
                    advance(part.count)
                    yield from results
        except KeyboardInterrupt as error:
            error.add_note(f"the jobs of map {self.id} go on; take it up again with id={self.id}")
            raise

    def _finished(self) -> Iterator[tuple[Part, list[Any]]]:
        waiting = {part.job_id: part for part in self._parts}
        order = deque(self._parts)
        ready: dict[int, list[Any]] = {}
        pause = FIRST_PAUSE
        while waiting:
            rows = self._ask(list(itertools.islice(waiting, WINDOW)))
            for job_id, status, result, error, _ in rows:
                part = waiting.pop(job_id)
                if status != "completed":
                    raise MapError(self.id, _failure(part, status, error))
                ready[job_id] = _results(part, result)
                if not self._is_ordered:
                    yield part, ready.pop(job_id)
            while order and order[0].job_id in ready:
                part = order.popleft()
                yield part, ready.pop(part.job_id)
            if rows:
                pause = FIRST_PAUSE
            elif waiting:
                time.sleep(pause)  # noqa: TID251  between two looks: nobody tells of single jobs
                pause = min(LONGEST_PAUSE, pause * 1.5)

    def _ask(self, ids: list[int], conn: psycopg.Connection[Any] | None = None) -> list[tuple[Any, ...]]:
        with self._client.connection(conn) as connection, explained():
            rows = cursor(connection).execute(batches.RESULTS, {"id": self.id, "ids": ids}).fetchall()
            connection.commit()  # without autocommit a transaction would be open for as long as the map takes
            return rows

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        if not self._show:
            yield lambda _count: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{self._handler.name} (map {self.id})", total=self._taken)
            yield lambda count: progress.advance(task, count)


def _chunked(payloads: Iterator[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    weight = 0
    for payload in payloads:
        if chunk and (len(chunk) >= size or weight + len(payload) > CHUNK_BYTES):
            yield chunk
            chunk, weight = [], 0
        chunk.append(payload)
        weight += len(payload)
    if chunk:
        yield chunk


def _results(part: Part, result: str | None) -> list[Any]:
    values: list[Any] = [None] * part.count if result is None else msgspec.json.decode(result)
    return values


def _failure(part: Part, status: str, error: str | None) -> str:
    said = msgspec.json.decode(error) if error else {}
    items = f"item {part.first}" if part.count == 1 else f"items {part.first} to {part.first + part.count - 1}"
    reason = f": {said.get('type')}: {said.get('message')}" if said else ""
    return f"job {part.job_id} of the map ({items}) has {status}{reason}"
