"""Work that takes several statements, written once for blocking connections and for asyncio.

A generator yields what is to be done next and is sent the rows that came of it; what it returns is the result. It holds no
connection and never waits itself, so `drive` and `drive_async` differ in nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, tuple_row

T = TypeVar("T")
Rows: TypeAlias = Sequence[tuple[Any, ...]]


class Step(msgspec.Struct, frozen=True):
    """One statement. With `first`, that one precedes it in the same transaction, with the same parameters."""

    query: bytes | sql.Composed
    parameters: dict[str, Any] | None = None
    first: bytes | None = None


class Pause(msgspec.Struct, frozen=True):
    """So many seconds until what somebody else holds may be free."""

    seconds: float


Steps: TypeAlias = Generator[Step | Pause, Rows, T]


def drive(conn: psycopg.Connection[Any], steps: Steps[T], *, commits: bool = False) -> T:
    """Do the steps on this connection; what they return. With `commits`, each is its own transaction in any case."""
    cursor: psycopg.Cursor[TupleRow] = psycopg.Cursor(conn, row_factory=tuple_row)
    try:
        step = next(steps)
        while True:
            try:
                rows = _do(conn, cursor, step)
                if commits and not conn.autocommit:
                    conn.commit()
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator's result comes as an exception's attribute
    finally:
        steps.close()


async def drive_async(conn: psycopg.AsyncConnection[Any], steps: Steps[T], *, commits: bool = False) -> T:
    """The same as `drive`, for asyncio."""
    cursor: psycopg.AsyncCursor[TupleRow] = psycopg.AsyncCursor(conn, row_factory=tuple_row)
    try:
        step = next(steps)
        while True:
            try:
                rows = await _do_async(conn, cursor, step)
                if commits and not conn.autocommit:
                    await conn.commit()
            except psycopg.Error as error:
                step = steps.throw(error)
            else:
                step = steps.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator's result comes as an exception's attribute
    finally:
        steps.close()


# Nothing is prepared: which partitions are opened at all is decided when the planner sees the values.


def _do(conn: psycopg.Connection[Any], cursor: psycopg.Cursor[TupleRow], step: Step | Pause) -> Rows:
    if isinstance(step, Pause):
        threading.Event().wait(step.seconds)
        return ()
    if step.first is None:
        cursor.execute(step.query, step.parameters, prepare=False)
    else:
        # In a caller's transaction both belong to that; `transaction()` would end one that has not begun yet.
        with conn.transaction() if conn.autocommit else nullcontext():
            cursor.execute(step.first, step.parameters, prepare=False)
            cursor.execute(step.query, step.parameters, prepare=False)
    return () if cursor.description is None else cursor.fetchall()


async def _do_async(
    conn: psycopg.AsyncConnection[Any], cursor: psycopg.AsyncCursor[TupleRow], step: Step | Pause
) -> Rows:
    if isinstance(step, Pause):
        await asyncio.sleep(step.seconds)
        return ()
    if step.first is None:
        await cursor.execute(step.query, step.parameters, prepare=False)
    else:
        async with conn.transaction() if conn.autocommit else nullcontext():
            await cursor.execute(step.first, step.parameters, prepare=False)
            await cursor.execute(step.query, step.parameters, prepare=False)
    return () if cursor.description is None else await cursor.fetchall()
