"""Many jobs into the database, by COPY, in one transaction or savepoint: all of them or none.

On a connection of our own the COPY stays open while the jobs are made, so that the server works at the same time. On the
caller's connection it must not: whatever makes the jobs may read them from that very connection, so they come in chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import chain
from typing import Any

import psycopg
from psycopg.rows import TupleRow, tuple_row

from tasuki_mp.job import JobRow
from tasuki_mp.store import copying, produce
from tasuki_mp.store.copying import Copied, Draw, Steps

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


class Intake:
    """Rows to insert, the first of which are made already; false if there are none."""

    def __init__(self, rows: Iterable[JobRow]) -> None:
        self.rows = self._remembering(rows)
        self.failure: BaseException | None = None
        """What was raised where the rows are made; it is the caller's own."""
        self.first = copying.chunk_of(self.rows)

    def __bool__(self) -> bool:
        return bool(self.first)

    def _remembering(self, rows: Iterable[JobRow]) -> Iterator[JobRow]:
        try:
            yield from rows
        except BaseException as error:
            self.failure = error
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """The database's errors in our words; the caller's own stay as they are."""
        try:
            yield
        except psycopg.Error as error:
            if error is self.failure:
                raise
            raise produce.explain(error) from error


def insert(
    connection: Connection, intake: Intake, *, is_ours: bool, batch_id: int | None = None, is_told: bool = True
) -> Copied:
    """Insert all rows; what came of it. Raises DatabaseError, and whatever the rows' maker raises.

    `is_told` says whether supervisors are to be notified.
    """
    copied = Copied(batch_id)
    # Drawing ids begins the caller's transaction if it has to be begun, so that what follows is a savepoint in it; in
    # autocommit, what follows is a transaction.
    draw = draw_ids(connection, len(intake.first), intake)
    with closing(copied), transaction(connection):
        _copy_in(connection, copied, iter(intake.first), draw, intake)
        if is_ours:
            for row in intake.rows:
                if len(copied) == len(intake.first):
                    with intake.explained():
                        cursor(connection).execute(copying.UNBOUND)
                draw = draw_ids(connection, copied.next_draw(), intake)
                _copy_in(connection, copied, chain((row,), intake.rows), draw, intake)
        else:
            while chunk := copying.chunk_of(intake.rows):
                draw = draw_ids(connection, len(chunk), intake)
                _copy_in(connection, copied, iter(chunk), draw, intake)
        with intake.explained():
            take_steps(connection, copied.rest())
        if is_told and copied.tell_parameters:
            with intake.explained():
                cursor(connection).execute(copying.TELL, copied.tell_parameters)
    return copied


def draw_ids(connection: Connection, count: int, intake: Intake) -> Draw:
    """That many ids."""
    with intake.explained():
        return Draw(cursor(connection).execute(copying.DRAW_IDS, {"count": count}).fetchall(), count)


def _copy_in(connection: Connection, copied: Copied, rows: Iterator[JobRow], draw: Draw, intake: Intake) -> None:
    with intake.explained(), cursor(connection).copy(copying.COPY) as copy:
        for piece in copied.pieces(rows, draw):
            copy.write(piece)


async def insert_async(
    connection: AsyncConnection, intake: Intake, *, is_ours: bool, batch_id: int | None = None
) -> Copied:
    """The same as `insert`, for asyncio. The event loop gets its turn with every piece that is sent."""
    copied = Copied(batch_id)
    draw = await _draw_ids_async(connection, len(intake.first), intake)
    with closing(copied):
        async with transaction_async(connection):
            await _copy_in_async(connection, copied, iter(intake.first), draw, intake)
            if is_ours:
                for row in intake.rows:
                    if len(copied) == len(intake.first):
                        with intake.explained():
                            await cursor_async(connection).execute(copying.UNBOUND)
                    draw = await _draw_ids_async(connection, copied.next_draw(), intake)
                    await _copy_in_async(connection, copied, chain((row,), intake.rows), draw, intake)
            else:
                while chunk := copying.chunk_of(intake.rows):
                    draw = await _draw_ids_async(connection, len(chunk), intake)
                    await _copy_in_async(connection, copied, iter(chunk), draw, intake)
            with intake.explained():
                await take_steps_async(connection, copied.rest())
            if copied.tell_parameters:
                with intake.explained():
                    await cursor_async(connection).execute(copying.TELL, copied.tell_parameters)
    return copied


async def _draw_ids_async(connection: AsyncConnection, count: int, intake: Intake) -> Draw:
    with intake.explained():
        drawn = await cursor_async(connection).execute(copying.DRAW_IDS, {"count": count})
        return Draw(await drawn.fetchall(), count)


async def _copy_in_async(
    connection: AsyncConnection, copied: Copied, rows: Iterator[JobRow], draw: Draw, intake: Intake
) -> None:
    with intake.explained():
        async with cursor_async(connection).copy(copying.COPY) as copy:
            for piece in copied.pieces(rows, draw):
                await copy.write(piece)
                await asyncio.sleep(0)


def take_steps(connection: Connection, steps: Steps) -> None:
    """Send each statement, and hand back what it returned."""
    reply: list[tuple[Any, ...]] | None = None
    while True:
        try:
            query, parameters = next(steps) if reply is None else steps.send(reply)
        except StopIteration:
            return
        done = cursor(connection).execute(query, parameters)
        reply = done.fetchall() if done.description else []


async def take_steps_async(connection: AsyncConnection, steps: Steps) -> None:
    """The same for asyncio."""
    reply: list[tuple[Any, ...]] | None = None
    while True:
        try:
            query, parameters = next(steps) if reply is None else steps.send(reply)
        except StopIteration:
            return
        done = await cursor_async(connection).execute(query, parameters)
        reply = await done.fetchall() if done.description else []


def cursor(connection: Connection) -> psycopg.Cursor[TupleRow]:
    """A cursor of our own kind, whatever cursors and rows the caller's connection makes by default."""
    return psycopg.Cursor(connection, row_factory=tuple_row)


def cursor_async(connection: AsyncConnection) -> psycopg.AsyncCursor[TupleRow]:
    """The same for asyncio."""
    return psycopg.AsyncCursor(connection, row_factory=tuple_row)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """A transaction, or within one a savepoint. Errors of its ends are explained; those within are not."""
    within: BaseException | None = None
    try:
        with connection.transaction():
            try:
                yield
            except BaseException as error:
                within = error
                raise
    except psycopg.Error as error:
        if error is within:
            raise
        raise produce.explain(error) from error


@asynccontextmanager
async def transaction_async(connection: AsyncConnection) -> AsyncIterator[None]:
    """The same for asyncio."""
    within: BaseException | None = None
    try:
        async with connection.transaction():
            try:
                yield
            except BaseException as error:
                within = error
                raise
    except psycopg.Error as error:
        if error is within:
            raise
        raise produce.explain(error) from error


@contextmanager
def explained() -> Iterator[None]:
    """The database's errors in our words."""
    try:
        yield
    except psycopg.Error as error:
        raise produce.explain(error) from error
