"""One connection to Postgres for one part of the supervisor, opened when it is needed and again after it died."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import psycopg

from tasuki_mp.store.connect import connect_async
from tasuki_mp.store.words import in_words

P = ParamSpec("P")
T = TypeVar("T")
AsyncConnection = psycopg.AsyncConnection[Any]

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


class UnavailableError(Exception):
    """The database did not do what was asked, and the connection is closed; nothing says whether it was committed."""


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether the connection can't be used again: it died, or its server has become read-only."""
    match error:
        case psycopg.errors.ReadOnlySqlTransaction():
            # Not an OperationalError, and the connection looks healthy; but this server is no longer the primary.
            return True
        case psycopg.InterfaceError():
            return True
        case psycopg.OperationalError():
            # Class 57P is the server going away, 08 the connection; without a code the socket broke.
            code = error.sqlstate
            return code is None or code.startswith(("57P", "08"))
        case _:
            return False


def cut(connection: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Break the connection's socket, so that whoever waits on it gets an error at once. From any thread."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        return  # closed already: then nobody waits on it


class Link:
    """Runs store functions on its own connection, one at a time."""

    def __init__(self, dsn: str, *, name: str, timeout: float) -> None:
        self._dsn = dsn
        self._name = name
        self._timeout = timeout
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()
        self._pause = FIRST_PAUSE

    async def call(
        self, work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `work(connection, …)` returns.

        Raises UnavailableError when the connection failed or nothing came back within the timeout; other errors of the
        statement itself as psycopg raises them.
        """
        async with self._turn:
            connection = await self._connected()
            overdue = asyncio.get_running_loop().call_later(self._timeout, cut, connection)
            try:
                result = await work(connection, *args, **kwargs)
            except psycopg.Error as error:
                if connection.closed or is_connection_lost(error):
                    await self._drop()
                    raise UnavailableError(_words(error)) from error
                raise
            except BaseException:
                # Cancelled in the middle of a statement: its reply would be taken for the next one's.
                await self._drop()
                raise
            finally:
                overdue.cancel()
            self._pause = FIRST_PAUSE
            return result

    async def pause(self) -> None:
        """Wait before another try: a tenth of a second at first, five in the end, never the same for two hosts."""
        wait, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        await asyncio.sleep(wait * (0.5 + random.random()))

    async def close(self) -> None:
        """Close the connection, if there is one."""
        await self._drop()

    async def _connected(self) -> AsyncConnection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        try:
            self._connection = await connect_async(self._dsn, name=self._name)
        except psycopg.Error as error:
            raise UnavailableError(_words(error)) from error
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)
            await connection.close()


def _words(error: psycopg.Error) -> str:
    code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    return f"{in_words(error)}{code}"
