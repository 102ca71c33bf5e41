"""Batches as producers hold them: enqueued together, waited for, canceled, tried again. With and without asyncio."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import psycopg

from tasuki_mp.errors import BatchError
from tasuki_mp.job import Job, row_of
from tasuki_mp.store import batches, bulk
from tasuki_mp.store.batches import BatchLine, BatchStatus
from tasuki_mp.store.bulk import Intake, cursor, cursor_async, explained

if TYPE_CHECKING:
    from tasuki_mp.client import AsyncClient, Client

__all__ = ["AsyncBatch", "Batch", "BatchLine", "BatchStatus"]

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds between two looks of whoever waits; a notification makes it look at once."""
CHANNEL: Final = b"tasuki_batch"


class Batch:
    """A batch that was enqueued; `client.batch(id)` gets it back by its id."""

    __slots__ = ("_client", "id")

    def __init__(self, id: int, client: Client) -> None:
        self.id = id
        self._client = client

    def __repr__(self) -> str:
        return f"Batch({self.id})"

    def status(self, conn: psycopg.Connection[Any] | None = None) -> BatchStatus:
        """How it stands. Counts its jobs: of a hundred thousand, in some hundredths of a second. Raises BatchError."""
        return _found(self._client._drive(batches.look(self.id), conn), self.id)

    def wait(self, timeout: float | None = None) -> BatchStatus:
        """How it ended, once it has. Raises TimeoutError after `timeout` seconds."""
        for status in self.watch(timeout):
            if status.has_ended:
                return status
        raise AssertionError("watch ends with the batch")

    def watch(self, timeout: float | None = None) -> Iterator[BatchStatus]:
        """How it stands, again and again, the last time when it has ended. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_PAUSE
        with self._client.listening(CHANNEL) as connection:
            while True:
                status = self.status(connection)  # a pool of the caller's may have no other one
                with explained():
                    connection.commit()
                yield status
                if status.has_ended:
                    return
                wait = _until(deadline, pause, status)
                if _hears_of(self.id, connection.notifies(timeout=wait, stop_after=1)):
                    continue
                pause = min(LONGEST_PAUSE, pause * 1.5)

    def cancel(self) -> int:
        """Cancel all of its jobs that have not ended; how many there were. Running ones are asked to stop."""
        return self._client._drive(batches.cancel(self.id), None)

    def retry_failed(self) -> int:
        """Try its failed and canceled jobs again, each as a new job of the batch, which is open again; how many."""
        return self._client._drive(batches.retry(self.id), None)


class AsyncBatch:
    """A batch that was enqueued, for asyncio."""

    __slots__ = ("_client", "id")

    def __init__(self, id: int, client: AsyncClient) -> None:
        self.id = id
        self._client = client

    def __repr__(self) -> str:
        return f"AsyncBatch({self.id})"

    async def status(self, conn: psycopg.AsyncConnection[Any] | None = None) -> BatchStatus:
        """How it stands. Raises BatchError."""
        return _found(await self._client._drive(batches.look(self.id), conn), self.id)

    async def wait(self, timeout: float | None = None) -> BatchStatus:
        """How it ended, once it has. Raises TimeoutError after `timeout` seconds."""
        async with aclosing(self.watch(timeout)) as watched:
            async for status in watched:
                if status.has_ended:
                    return status
        raise AssertionError("watch ends with the batch")

    async def watch(self, timeout: float | None = None) -> AsyncGenerator[BatchStatus]:
        """How it stands, again and again, the last time when it has ended. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_PAUSE
        async with self._client.listening(CHANNEL) as connection:
            while True:
                status = await self.status(connection)
                with explained():
                    await connection.commit()
                yield status
                if status.has_ended:
                    return
                heard = connection.notifies(timeout=_until(deadline, pause, status), stop_after=1)
                if _hears_of(self.id, [notification async for notification in heard]):
                    continue
                pause = min(LONGEST_PAUSE, pause * 1.5)

    async def cancel(self) -> int:
        """Cancel all of its jobs that have not ended; as `Batch.cancel`."""
        return await self._client._drive(batches.cancel(self.id), None)

    async def retry_failed(self) -> int:
        """Try its failed and canceled jobs again; as `Batch.retry_failed`."""
        return await self._client._drive(batches.retry(self.id), None)


def create(
    client: Client,
    jobs: Iterable[Job],
    conn: psycopg.Connection[Any] | None,
    *,
    name: str | None,
    on_complete: Job | None,
    on_success: Job | None,
    on_failure: Job | None,
    chunk: int | None = None,
) -> Batch:
    """Enqueue a batch: all of it in one transaction, or with `chunk` in several of so many jobs."""
    parameters = _parameters(name, on_complete, on_success, on_failure)
    rows = map(row_of, jobs)
    with client.connection(conn) as connection:
        with bulk.transaction(connection), explained():
            row = cursor(connection).execute(batches.CREATE, parameters).fetchone()
            batch = Batch(batches.batch_id(row), client)
            if chunk is None:
                _add(connection, batch.id, Intake(rows), is_ours=conn is None, is_last=True)
        if chunk is not None:
            while portion := _portion(rows, chunk):
                with bulk.transaction(connection), explained():
                    _add(connection, batch.id, Intake(portion), is_ours=False, is_last=False)
            with bulk.transaction(connection), explained():
                _add(connection, batch.id, Intake(()), is_ours=False, is_last=True)
    return batch


def _add(connection: psycopg.Connection[Any], id: int, intake: Intake, *, is_ours: bool, is_last: bool) -> None:
    count = 0
    if intake:
        copied = bulk.insert(connection, intake, is_ours=is_ours, batch_id=id)
        count = len(copied.ids) + len(copied.followers)
    cursor(connection).execute(batches.SEAL, {"id": id, "count": count, "is_sealed": is_last, "state": None})


def _portion(rows: Iterator[Any], size: int) -> list[Any]:
    return [row for _, row in zip(range(size), rows, strict=False)]


async def create_async(
    client: AsyncClient,
    jobs: Iterable[Job],
    conn: psycopg.AsyncConnection[Any] | None,
    *,
    name: str | None,
    on_complete: Job | None,
    on_success: Job | None,
    on_failure: Job | None,
) -> AsyncBatch:
    """The same as `create`, in one transaction, for asyncio."""
    parameters = _parameters(name, on_complete, on_success, on_failure)
    intake = Intake(map(row_of, jobs))
    async with client.connection(conn) as connection, bulk.transaction_async(connection):
        with explained():
            row = await (await cursor_async(connection).execute(batches.CREATE, parameters)).fetchone()
        batch = AsyncBatch(batches.batch_id(row), client)
        count = 0
        if intake:
            copied = await bulk.insert_async(connection, intake, is_ours=conn is None, batch_id=batch.id)
            count = len(copied.ids) + len(copied.followers)
        with explained():
            sealing = {"id": batch.id, "count": count, "is_sealed": True, "state": None}
            await cursor_async(connection).execute(batches.SEAL, sealing)
    return batch


def _parameters(
    name: str | None, on_complete: Job | None, on_success: Job | None, on_failure: Job | None
) -> dict[str, Any]:
    if name is not None and not (1 <= len(name) <= 200 and name.isprintable()):
        raise ValueError(f"a batch's name has 1 to 200 printable characters, not {name!r:.100}")
    return {
        "name": name,
        "on_complete": batches.follow_up(on_complete),
        "on_success": batches.follow_up(on_success),
        "on_failure": batches.follow_up(on_failure),
        "state": "{}",
    }


def _found(status: BatchStatus | None, id: int) -> BatchStatus:
    if status is None:
        raise BatchError(id)
    return status


def _until(deadline: float | None, pause: float, status: BatchStatus) -> float:
    if deadline is None:
        return pause
    left = deadline - time.monotonic()
    if left <= 0:
        left_over = f"{status.pending + status.running} of {status.total} jobs are left"
        raise TimeoutError(f"batch {status.id} has not ended in time: {left_over}")
    return min(pause, left)


def _hears_of(id: int, notifications: Iterable[psycopg.Notify]) -> bool:
    return any(notification.payload == str(id) for notification in notifications)
