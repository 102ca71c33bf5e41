"""Waiting for a job's result: looks at growing intervals, and after a moment a notification between the looks.

A job of some milliseconds is found by the first looks, which write nothing. Who waits longer registers, and then finishing
notifies for this job; with nobody registered, finishing notifies nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import psycopg
from psycopg import errors as pg

from tasuki_mp import payload, sql
from tasuki_mp.errors import DatabaseError, JobCanceledError, JobFailedError, UnknownJobError
from tasuki_mp.job import State
from tasuki_mp.store.bulk import cursor, cursor_async, explained

if TYPE_CHECKING:
    from tasuki_mp.client import AsyncClient, Client

FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 1.0
PATIENCE: Final = 0.1
"""The pause from which on it is worth while to register."""
MOST_LISTENERS: Final = 2
"""Of a client's connections; who waits beyond them looks only."""
OUTAGE: Final = 30.0
"""Seconds for which the database may be away, as it is while it restarts."""
KEEP_EVERY: Final = 30.0
"""Seconds; a registration holds for a minute."""

_LOOK: Final = sql.query("job_result")
_ADD: Final = sql.query("add_waiter")
_KEEP: Final = sql.query("keep_waiter")
_REMOVE: Final = sql.query("remove_waiter")
_LISTEN: Final = b"listen tasuki_done"
_UNLISTEN: Final = b"unlisten tasuki_done"


class Ear(NamedTuple):
    """A connection that hears of the end of jobs, and the row that says of which one."""

    connection: Any
    waiter: int
    kept_at: float


def wait(client: Client, job_id: int, timeout: float | None, kind: Any) -> Any:
    """What the job's handler returned. Raises as `JobHandle.result` says."""
    began = heard_at = time.monotonic()
    pause = FIRST_PAUSE
    ear: Ear | None = None
    may_listen = True
    with ExitStack() as ears:
        while True:
            try:
                # A pool of the caller's may have no other connection than the one that listens.
                with client.connection(ear and ear.connection) as connection, explained():
                    row = cursor(connection).execute(_LOOK, {"id": job_id}).fetchone()
                    connection.commit()  # without autocommit: notifications come between transactions only
            except DatabaseError as error:
                if not _is_away(error) or time.monotonic() - heard_at > OUTAGE:
                    raise
                ears.close()
                ear = None
            else:
                heard_at = time.monotonic()
                if (done := _outcome(job_id, row, kind)) is not None:
                    return done[0]
            left = _left(job_id, began, timeout)
            if ear is None and may_listen and pause >= PATIENCE and client.ears.acquire(blocking=False):
                ears.callback(client.ears.release)
                try:
                    ear = ears.enter_context(_listening(client, job_id))
                except DatabaseError as error:
                    if not _is_away(error):
                        raise
                else:
                    may_listen = ear is not None
                if ear is not None:
                    continue
                ears.close()
            if ear is None:
                threading.Event().wait(min(pause, left))
            else:
                ear = _hear(ear, job_id, min(LONGEST_PAUSE, left))
                if ear is None:
                    ears.close()
            pause = min(LONGEST_PAUSE, pause * 1.5)


@contextmanager
def _listening(client: Client, job_id: int) -> Iterator[Ear | None]:
    """An ear, or None for a role that may not register."""
    with client.connection(None) as connection:
        try:
            with explained():
                connection.execute(_LISTEN)
                row = cursor(connection).execute(_ADD, {"id": job_id}).fetchone()
                connection.commit()
        except DatabaseError as error:
            if not isinstance(error.__cause__, pg.InsufficientPrivilege):
                raise
            row = None
        ear = None if row is None else Ear(connection, row[0], time.monotonic())
        try:
            yield ear
        finally:
            with suppress(psycopg.OperationalError):  # lost: nobody listens any more, and the row will expire
                connection.rollback()  # what was refused leaves a transaction that takes nothing else
                connection.execute(_UNLISTEN)
                if ear is not None:
                    cursor(connection).execute(_REMOVE, {"waiter": ear.waiter})
                connection.commit()


def _hear(ear: Ear, job_id: int, seconds: float) -> Ear | None:
    """Wait for that job's end, but not longer; None when the connection is lost."""
    try:
        with closing(ear.connection.notifies(timeout=seconds)) as notifications:
            for heard in notifications:
                if heard.payload == str(job_id):
                    break
        if time.monotonic() - ear.kept_at < KEEP_EVERY:
            return ear
        cursor(ear.connection).execute(_KEEP, {"waiter": ear.waiter})
        ear.connection.commit()
        return ear._replace(kept_at=time.monotonic())
    except psycopg.OperationalError:
        return None


async def wait_async(client: AsyncClient, job_id: int, timeout: float | None, kind: Any) -> Any:
    """The same as `wait`, for asyncio."""
    began = heard_at = time.monotonic()
    pause = FIRST_PAUSE
    ear: Ear | None = None
    may_listen = True
    async with AsyncExitStack() as ears:
        while True:
            try:
                async with client.connection(ear and ear.connection) as connection:
                    with explained():
                        row = await (await cursor_async(connection).execute(_LOOK, {"id": job_id})).fetchone()
                        await connection.commit()
            except DatabaseError as error:
                if not _is_away(error) or time.monotonic() - heard_at > OUTAGE:
                    raise
                await ears.aclose()
                ear = None
            else:
                heard_at = time.monotonic()
                if (done := _outcome(job_id, row, kind)) is not None:
                    return done[0]
            left = _left(job_id, began, timeout)
            if ear is None and may_listen and pause >= PATIENCE and client.ears.acquire(blocking=False):
                ears.callback(client.ears.release)
                try:
                    ear = await ears.enter_async_context(_listening_async(client, job_id))
                except DatabaseError as error:
                    if not _is_away(error):
                        raise
                else:
                    may_listen = ear is not None
                if ear is not None:
                    continue
                await ears.aclose()
            if ear is None:
                await asyncio.sleep(min(pause, left))
            else:
                ear = await _hear_async(ear, job_id, min(LONGEST_PAUSE, left))
                if ear is None:
                    await ears.aclose()
            pause = min(LONGEST_PAUSE, pause * 1.5)


@asynccontextmanager
async def _listening_async(client: AsyncClient, job_id: int) -> AsyncIterator[Ear | None]:
    async with client.connection(None) as connection:
        try:
            with explained():
                await connection.execute(_LISTEN)
                row = await (await cursor_async(connection).execute(_ADD, {"id": job_id})).fetchone()
                await connection.commit()
        except DatabaseError as error:
            if not isinstance(error.__cause__, pg.InsufficientPrivilege):
                raise
            row = None
        ear = None if row is None else Ear(connection, row[0], time.monotonic())
        try:
            yield ear
        finally:
            with suppress(psycopg.OperationalError):
                await connection.rollback()
                await connection.execute(_UNLISTEN)
                if ear is not None:
                    await cursor_async(connection).execute(_REMOVE, {"waiter": ear.waiter})
                await connection.commit()


async def _hear_async(ear: Ear, job_id: int, seconds: float) -> Ear | None:
    try:
        async with aclosing(ear.connection.notifies(timeout=seconds)) as notifications:
            async for heard in notifications:
                if heard.payload == str(job_id):
                    break
        if time.monotonic() - ear.kept_at < KEEP_EVERY:
            return ear
        await cursor_async(ear.connection).execute(_KEEP, {"waiter": ear.waiter})
        await ear.connection.commit()
        return ear._replace(kept_at=time.monotonic())
    except psycopg.OperationalError:
        return None


def _is_away(error: DatabaseError) -> bool:
    """Whether the connection was lost, and another one may do."""
    cause = error.__cause__
    return isinstance(cause, psycopg.OperationalError) and (cause.sqlstate or "08")[:2] in {"08", "57"}


def _outcome(job_id: int, row: tuple[Any, ...] | None, kind: Any) -> tuple[Any] | None:
    """What the job returned, in a tuple; None while it is not final. Raises what else became of it."""
    if row is None:
        raise UnknownJobError(job_id)
    state, result, error = row
    match State(state):
        case State.COMPLETED:
            return (None if result is None else msgspec.json.decode(result, type=kind, dec_hook=payload.dec_hook),)
        case State.FAILED:
            raise JobFailedError(job_id, msgspec.json.decode(error or "{}"))
        case State.CANCELED:
            raise JobCanceledError(job_id, msgspec.json.decode(error or "{}"))
        case _:
            return None


def _left(job_id: int, began: float, timeout: float | None) -> float:
    left = LONGEST_PAUSE if timeout is None else began + timeout - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"job {job_id} is not final after {timeout:g} seconds; it goes on")
    return left
