"""What producers hold: `Client`, and `AsyncClient` for asyncio. The same statements, sent in two ways.

With `conn=` everything happens inside the caller's own transaction, which is never committed here: the job exists if and
only if the caller commits. Without, on a small pool of this process, opened at the first use.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import psycopg
import psycopg_pool
from psycopg import errors as pg

from tasuki_mp import batching
from tasuki_mp.batching import AsyncBatch, Batch, BatchLine
from tasuki_mp.errors import DatabaseError
from tasuki_mp.handles import AsyncJobHandle, JobHandle
from tasuki_mp.job import Job, Progress, State, row_of
from tasuki_mp.results import MOST_LISTENERS
from tasuki_mp.steering import AsyncSteering, Steering
from tasuki_mp.store import batches, bulk, produce
from tasuki_mp.store.bulk import Intake, cursor, cursor_async, explained
from tasuki_mp.store.copying import IdRanges
from tasuki_mp.store.pool import AsyncPools, Pools
from tasuki_mp.store.produce import CancelVerdict
from tasuki_mp.store.steps import Steps, drive, drive_async
from tasuki_mp.storing import AsyncStoring, Storing

__all__ = ["AsyncClient", "AsyncJobHandle", "CancelVerdict", "Client", "IdRanges", "JobHandle"]

T = TypeVar("T")
if TYPE_CHECKING:
    from tasuki_mp.handlers import Handler
    from tasuki_mp.mapping import AsyncMap, Map

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


class Client(Steering, Storing):
    """Enqueues and cancels jobs, looks at them and changes them. Safe to use from several threads, and after a fork.

    Takes a dsn, or a psycopg_pool.ConnectionPool of the caller's, who opens and closes it; by default the database that
    the environment names. Connects at the first use; is closed at the interpreter's exit, or by `close`.
    """

    def __init__(self, database: str | psycopg_pool.ConnectionPool[Any] | None = None) -> None:
        self._pools = Pools(database)
        self._told = _Throttle()
        self.ears = threading.Semaphore(MOST_LISTENERS)
        """Those of its connections that wait for results."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's own connections. It may still be used, and then opens new ones."""
        self._pools.close()

    def enqueue(self, job: Job, conn: Connection | None = None) -> JobHandle:
        """Insert a job; one whose unique key is taken may stand in its place. Raises DatabaseError, ConflictError."""
        if row_of(job).needs or job.row.followers:
            with self.connection(conn) as connection:
                copied = bulk.insert(connection, Intake([job.row]), is_ours=conn is None)
            return JobHandle(copied.ids[0], self, followers=copied.followers)
        # Inside a transaction, Postgres itself sends equal notifications once.
        is_told = conn is not None or self._told.is_time(job)
        with self.connection(conn) as connection, explained():
            is_apart = is_told and conn is None and connection.autocommit and produce.is_told_apart(job.row)
            query, parameters = produce.enqueueing(job, is_told=is_told and not is_apart)
            row = cursor(connection).execute(query, parameters).fetchone()
            if is_apart:
                with suppress(psycopg.Error):  # the job is there: whoever does not hear of it finds it
                    cursor(connection).execute(produce.TELL, produce.tell_parameters(job.row))
        if conn is None and is_told:
            self._told.note(job)
        job_id, is_new = produce.standing(row) if job.row.unique else (produce.job_id(row), True)
        return JobHandle(job_id, self, is_new=is_new)

    def enqueue_many(self, jobs: Iterable[Job], conn: Connection | None = None) -> IdRanges:
        """Insert all jobs of an iterable, in constant memory, by COPY: all of them, or none if anything fails.

        Returns their ids, in the order of the jobs.
        """
        intake = Intake(map(row_of, jobs))
        if not intake:
            return IdRanges()
        with self.connection(conn) as connection:
            return bulk.insert(connection, intake, is_ours=conn is None).ids

    def cancel(self, ids: Iterable[int], conn: Connection | None = None) -> dict[int, CancelVerdict]:
        """Cancel jobs; for each id what came of it."""
        with self.connection(conn) as connection, explained():
            rows = cursor(connection).execute(produce.CANCEL, produce.cancel_parameters(ids)).fetchall()
        return produce.verdicts(rows)

    def status(self, job_id: int, conn: Connection | None = None) -> State | None:
        """Where a job stands; None if there is no such job."""
        with self.connection(conn) as connection, explained():
            return produce.state(cursor(connection).execute(produce.STATUS, {"id": job_id}).fetchone())

    def progress(self, job_id: int, conn: Connection | None = None) -> Progress | None:
        """How far a job says it is; None if it does not run, or says nothing."""
        with self.connection(conn) as connection, explained():
            return produce.progress(cursor(connection).execute(produce.PROGRESS, {"id": job_id}).fetchone())

    def _drive(self, steps: Steps[T], conn: Connection | None) -> T:
        with self.connection(conn) as connection, explained():
            return drive(connection, steps, commits=conn is None)

    def enqueue_batch(
        self,
        jobs: Iterable[Job],
        conn: Connection | None = None,
        *,
        name: str | None = None,
        on_complete: Job | None = None,
        on_success: Job | None = None,
        on_failure: Job | None = None,
        chunk: int | None = None,
    ) -> Batch:
        """Enqueue jobs together, as `enqueue_many` does, under an id with counts and follow-up jobs.

        When the last of them has ended, `on_complete` is enqueued, and `on_success` if all have completed, else
        `on_failure`; each at most once. With `chunk`, in several transactions of so many jobs: if one fails, those
        before it are there, and the batch never ends.
        """
        follow_ups = {"on_complete": on_complete, "on_success": on_success, "on_failure": on_failure}
        return batching.create(self, jobs, conn, name=name, chunk=chunk, **follow_ups)

    def map(
        self,
        handler: Handler[..., Any],
        items: Iterable[Any] = (),
        *,
        chunk: int | Literal["auto"] = "auto",
        ordered: bool = True,
        progress: bool | None = None,
        id: int | None = None,
    ) -> Map:
        """Run a handler over many items as jobs, and iterate over their results, in order or as they come.

        An item is the handler's first argument, or a job of it. `chunk` is how many items a job carries, by default
        measured. What was enqueued goes on when this program ends; `id=` of an earlier map takes that up again, with the
        same items if it was interrupted while they were enqueued. Results are JSON values. Raises MapError.
        """
        from tasuki_mp.mapping import Map

        return Map(self, handler, items, chunk=chunk, ordered=ordered, progress=progress, id=id)

    def batch(self, id: int) -> Batch:
        """The batch with that id."""
        return Batch(id, self)

    def batches(self, *, name: str | None = None, before: int | None = None, limit: int = 50) -> list[BatchLine]:
        """The newest batches, or those of one name, with ids below `before`."""
        return self._drive(batches.listed(name, before, limit), None)

    @contextmanager
    def listening(self, channel: bytes) -> Iterator[Connection]:
        """A connection of our own that hears of a channel."""
        with self.connection(None) as connection:
            with explained():
                connection.execute(b"LISTEN " + channel)
                connection.commit()  # without autocommit nobody listens before
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.rollback()
                    connection.execute(b"UNLISTEN " + channel)

    def connection(self, conn: object) -> AbstractContextManager[Connection]:
        """The caller's connection, or one of our own for as long as it is needed."""
        if conn is None:
            return self._own_connection()
        if isinstance(conn, psycopg.Connection):
            return nullcontext(conn)
        raise _wrong_connection(conn, psycopg.Connection)

    @contextmanager
    def _own_connection(self) -> Iterator[Connection]:
        with explained():
            pool, connection = self._pools.take()
        try:
            with connection:  # commits where the caller's pool has connections without autocommit; closes nothing
                yield connection
        except DatabaseError as error:
            if _is_useless_now(error):
                connection.close()
            raise
        finally:
            pool.putconn(connection)


class AsyncClient(AsyncSteering, AsyncStoring):
    """The same from asyncio, on one event loop.

    Takes a dsn, or a psycopg_pool.AsyncConnectionPool of the caller's, who opens and closes it; by default the database
    that the environment names. Connects at the first use; use it in an `async with`, or await `close()` at the end.
    """

    def __init__(self, database: str | psycopg_pool.AsyncConnectionPool[Any] | None = None) -> None:
        self._pools = AsyncPools(database)
        self._told = _Throttle()
        self.ears = threading.Semaphore(MOST_LISTENERS)
        """Those of its connections that wait for results."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's own connections. It may still be used, and then opens new ones."""
        await self._pools.close()

    async def enqueue(self, job: Job, conn: AsyncConnection | None = None) -> AsyncJobHandle:
        """Insert a job; one whose unique key is taken may stand in its place. Raises DatabaseError, ConflictError."""
        if row_of(job).needs or job.row.followers:
            async with self.connection(conn) as connection:
                copied = await bulk.insert_async(connection, Intake([job.row]), is_ours=conn is None)
            return AsyncJobHandle(copied.ids[0], self, followers=copied.followers)
        is_told = conn is not None or self._told.is_time(job)
        async with self.connection(conn) as connection:
            with explained():
                is_apart = is_told and conn is None and connection.autocommit and produce.is_told_apart(job.row)
                query, parameters = produce.enqueueing(job, is_told=is_told and not is_apart)
                row = await (await cursor_async(connection).execute(query, parameters)).fetchone()
                if is_apart:
                    with suppress(psycopg.Error):  # the job is there: whoever does not hear of it finds it
                        await cursor_async(connection).execute(produce.TELL, produce.tell_parameters(job.row))
        if conn is None and is_told:
            self._told.note(job)
        job_id, is_new = produce.standing(row) if job.row.unique else (produce.job_id(row), True)
        return AsyncJobHandle(job_id, self, is_new=is_new)

    async def enqueue_many(self, jobs: Iterable[Job], conn: AsyncConnection | None = None) -> IdRanges:
        """Insert all jobs of an iterable, in constant memory, by COPY: all of them, or none if anything fails.

        Returns their ids, in the order of the jobs. The event loop gets its turn now and then.
        """
        intake = Intake(map(row_of, jobs))
        if not intake:
            return IdRanges()
        async with self.connection(conn) as connection:
            return (await bulk.insert_async(connection, intake, is_ours=conn is None)).ids

    async def cancel(self, ids: Iterable[int], conn: AsyncConnection | None = None) -> dict[int, CancelVerdict]:
        """Cancel jobs; for each id what came of it."""
        async with self.connection(conn) as connection:
            with explained():
                found = await cursor_async(connection).execute(produce.CANCEL, produce.cancel_parameters(ids))
                return produce.verdicts(await found.fetchall())

    async def status(self, job_id: int, conn: AsyncConnection | None = None) -> State | None:
        """Where a job stands; None if there is no such job."""
        async with self.connection(conn) as connection:
            with explained():
                found = await cursor_async(connection).execute(produce.STATUS, {"id": job_id})
                return produce.state(await found.fetchone())

    async def progress(self, job_id: int, conn: AsyncConnection | None = None) -> Progress | None:
        """How far a job says it is; None if it does not run, or says nothing."""
        async with self.connection(conn) as connection:
            with explained():
                found = await cursor_async(connection).execute(produce.PROGRESS, {"id": job_id})
                return produce.progress(await found.fetchone())

    async def _drive(self, steps: Steps[T], conn: AsyncConnection | None) -> T:
        async with self.connection(conn) as connection:
            with explained():
                return await drive_async(connection, steps, commits=conn is None)

    async def enqueue_batch(
        self,
        jobs: Iterable[Job],
        conn: AsyncConnection | None = None,
        *,
        name: str | None = None,
        on_complete: Job | None = None,
        on_success: Job | None = None,
        on_failure: Job | None = None,
    ) -> AsyncBatch:
        """Enqueue jobs together under an id with counts and follow-up jobs, as `Client.enqueue_batch` does."""
        follow_ups = {"on_complete": on_complete, "on_success": on_success, "on_failure": on_failure}
        return await batching.create_async(self, jobs, conn, name=name, **follow_ups)

    def map(
        self,
        handler: Handler[..., Any],
        items: Iterable[Any] = (),
        *,
        chunk: int | Literal["auto"] = "auto",
        ordered: bool = True,
        progress: bool | None = None,
        id: int | None = None,
    ) -> AsyncMap:
        """Run a handler over many items as jobs, and iterate over their results with `async for`; see `Client.map`."""
        from tasuki_mp.mapping import AsyncMap

        return AsyncMap(self, handler, items, chunk=chunk, ordered=ordered, progress=progress, id=id)

    def batch(self, id: int) -> AsyncBatch:
        """The batch with that id."""
        return AsyncBatch(id, self)

    async def batches(self, *, name: str | None = None, before: int | None = None, limit: int = 50) -> list[BatchLine]:
        """The newest batches, or those of one name, with ids below `before`."""
        return await self._drive(batches.listed(name, before, limit), None)

    @asynccontextmanager
    async def listening(self, channel: bytes) -> AsyncIterator[AsyncConnection]:
        """A connection of our own that hears of a channel."""
        async with self.connection(None) as connection:
            with explained():
                await connection.execute(b"LISTEN " + channel)
                await connection.commit()
            try:
                yield connection
            finally:
                if not connection.closed:
                    await connection.rollback()
                    await connection.execute(b"UNLISTEN " + channel)

    def connection(self, conn: object) -> AbstractAsyncContextManager[AsyncConnection]:
        """The caller's connection, or one of our own for as long as it is needed."""
        if conn is None:
            return self._own_connection()
        if isinstance(conn, psycopg.AsyncConnection):
            return nullcontext(conn)
        raise _wrong_connection(conn, psycopg.AsyncConnection)

    @asynccontextmanager
    async def _own_connection(self) -> AsyncIterator[AsyncConnection]:
        with explained():
            pool, connection = await self._pools.take()
        try:
            async with connection:
                yield connection
        except DatabaseError as error:
            if _is_useless_now(error):
                await connection.close()
            raise
        finally:
            # The connection goes back also when the caller's task is being cancelled.
            await asyncio.shield(pool.putconn(connection))


class _Throttle:
    """When each queue was last notified: a notification in every transaction would cost busy producers dearly."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def is_time(self, job: Job) -> bool:
        row = row_of(job)
        if row.scheduled_at is not None or row.delay > 0:
            return True  # each has a time of its own
        last = self._last.get(row.queue)
        return last is None or time.monotonic() - last >= produce.TELL_EVERY

    def note(self, job: Job) -> None:
        row = job.row
        if row.scheduled_at is None and row.delay == 0:
            self._last[row.queue] = time.monotonic()


def _is_useless_now(error: DatabaseError) -> bool:
    """Whether the connection looks healthy but leads to a server that has become a standby."""
    return isinstance(error.__cause__, pg.ReadOnlySqlTransaction)


def _wrong_connection(conn: object, wanted: type) -> TypeError:
    name = f"{type(conn).__module__}.{type(conn).__qualname__}"
    if isinstance(conn, psycopg.AsyncConnection):
        return TypeError(f"conn= is a {name}: with connections for asyncio use tasuki_mp.AsyncClient")
    if isinstance(conn, psycopg.Connection):
        return TypeError(f"conn= is a {name}: AsyncClient needs a psycopg.AsyncConnection; without asyncio use Client")
    return TypeError(
        f"conn= must be a psycopg.{wanted.__name__}, not {name}; of SQLAlchemy and Django connections pass the driver's own, "
        "for example session.connection().connection.driver_connection, or django.db.connection.connection"
    )
