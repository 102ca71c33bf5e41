"""Pools of producers' connections: opened at the first use; no connection is handed out that has ended."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
import psycopg_pool
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from tasuki_mp.config import EMBEDDED, find_dsn
from tasuki_mp.store.connect import PLANS

if TYPE_CHECKING:
    from tasuki_mp.embedded import EmbeddedServer


PATIENCE: Final = 10.0
"""Seconds that an enqueue waits for a connection: a restart of the server takes less."""
_MOST: Final = 4
_IDLE: Final = 60.0
"""Seconds after which a connection that nobody needs is closed."""
_SIZES: Final[dict[str, Any]] = {
    "name": "tasuki-mp",
    "min_size": 1,
    "max_size": _MOST,
    "max_idle": _IDLE,
    "timeout": PATIENCE,
}

_TRIED_EVERY: Final = 1.0
"""Seconds for which a connection that was tried counts as one that works, unless the server has said something since."""

_PARAMETERS: Final[dict[str, Any]] = {
    "autocommit": True,
    "application_name": "tasuki-mp producer",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "target_session_attrs": "read-write",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
# Whatever an administrator set for the database or the role: inserting must not fail for being serializable, and lists
# must not read whole tables because the planner has never looked at them.
_OPTIONS: Final = PLANS + r" -c default_transaction_isolation=read\ committed -c timezone=UTC"
_POOLER_REFUSED: Final = "unsupported startup parameter"


def _options(dsn: str) -> str:
    given = conninfo_to_dict(dsn).get("options")
    return f"{given} {_OPTIONS}" if given else _OPTIONS


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """As producers need it, also from a pooler that takes no options and shares sessions (PgBouncer)."""

    tried_at = float("-inf")

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        given = {**_PARAMETERS, **kwargs}
        try:
            return super().connect(conninfo, **given, options=_options(conninfo))
        except psycopg.OperationalError as error:
            if _POOLER_REFUSED not in str(error):
                raise
        return super().connect(conninfo, **given, prepare_threshold=None)


class _AsyncConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """The same for asyncio."""

    tried_at = float("-inf")

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        given = {**_PARAMETERS, **kwargs}
        try:
            return await super().connect(conninfo, **given, options=_options(conninfo))
        except psycopg.OperationalError as error:
            if _POOLER_REFUSED not in str(error):
                raise
        return await super().connect(conninfo, **given, prepare_threshold=None)


SyncPool = psycopg_pool.ConnectionPool[_Connection]
AsyncPool = psycopg_pool.AsyncConnectionPool[_AsyncConnection]


def _must_be_tried(connection: _Connection | _AsyncConnection) -> bool:
    """Whether a connection may have ended since it worked. To ask the server each time is a round trip more for each enqueue.

    A server that goes away says so; one that vanishes without a word within that second is found out by the statement
    itself. Raises psycopg.OperationalError for a connection that is closed.
    """
    has_poll = hasattr(select, "poll")  # not on Windows
    if not has_poll or time.monotonic() - connection.tried_at > _TRIED_EVERY:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _try(connection: _Connection) -> None:
    if _must_be_tried(connection):
        psycopg_pool.ConnectionPool.check_connection(connection)
        connection.tried_at = time.monotonic()


async def _try_async(connection: _AsyncConnection) -> None:
    if _must_be_tried(connection):
        await psycopg_pool.AsyncConnectionPool.check_connection(connection)
        connection.tried_at = time.monotonic()


class Pools:
    """Where a client without `conn=` gets its connections: a pool of the caller's, or one of its own."""

    def __init__(self, database: str | psycopg_pool.ConnectionPool[Any] | None) -> None:
        self._given = database if isinstance(database, psycopg_pool.ConnectionPool) else None
        self._where = _Where(database)
        self._own: SyncPool | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._lock = threading.Lock()
        _living.add(self)

    def take(self) -> tuple[psycopg_pool.ConnectionPool[Any], psycopg.Connection[Any]]:
        """A connection that works, and the pool that it goes back to. Raises psycopg.Error."""
        pool = self._given or self._own or self._open()
        try:
            return pool, pool.getconn()
        except psycopg_pool.PoolTimeout:
            if pool is self._given:
                raise
        # What the pool says is only that it took too long. Connecting here and now says why, if it is still so.
        _Connection.connect(self._where.dsn()).close()
        raise pg.TooManyConnections(f"all {_MOST} connections of this process were in use for {PATIENCE:g} seconds")

    def close(self) -> None:
        """Close what is the client's own."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._own = self._finalizer = None
            self._where.close()

    def after_fork(self) -> None:
        """In the child of a fork: leave what is the parent's alone. Its sockets must not be used, nor closed politely."""
        _inherited.extend((self._own, self._where))
        self._where = self._where.copy()
        self._lock = threading.Lock()
        self._own = self._finalizer = None

    def _open(self) -> SyncPool:
        with self._lock:
            if self._own is None:
                dsn = self._where.dsn()
                # A pool would go on trying in the background and tell nobody why: a connection made here does.
                _Connection.connect(dsn).close()
                pool: SyncPool = psycopg_pool.ConnectionPool(
                    dsn,
                    connection_class=_Connection,
                    check=_try,
                    open=False,
                    **_SIZES,
                )
                pool.open()
                self._finalizer = weakref.finalize(self, _close, os.getpid(), pool)
                self._own = pool
            return self._own


class AsyncPools:
    """The same for asyncio. A pool belongs to its event loop: on another one, another is opened."""

    def __init__(self, database: str | psycopg_pool.AsyncConnectionPool[Any] | None) -> None:
        self._given = database if isinstance(database, psycopg_pool.AsyncConnectionPool) else None
        self._where = _Where(database)
        self._own: tuple[asyncio.AbstractEventLoop, asyncio.Task[AsyncPool]] | None = None
        _living.add(self)

    async def take(self) -> tuple[psycopg_pool.AsyncConnectionPool[Any], psycopg.AsyncConnection[Any]]:
        """A connection that works, and the pool that it goes back to. Raises psycopg.Error."""
        pool = self._given or await self._opened()
        try:
            return pool, await pool.getconn()
        except psycopg_pool.PoolTimeout:
            if pool is self._given:
                raise
        await (await _AsyncConnection.connect(self._where.dsn())).close()
        raise pg.TooManyConnections(f"all {_MOST} connections of this process were in use for {PATIENCE:g} seconds")

    async def close(self) -> None:
        """Close what is the client's own."""
        own, self._own = self._own, None
        if own is not None and own[0] is asyncio.get_running_loop():
            await (await own[1]).close()
        self._where.close()

    def after_fork(self) -> None:
        """In the child of a fork: leave what is the parent's alone."""
        _inherited.extend((self._own, self._where))
        self._where = self._where.copy()
        self._own = None

    async def _opened(self) -> AsyncPool:
        loop = asyncio.get_running_loop()
        if self._own is None or self._own[0] is not loop:
            # One task opens it for all who ask meanwhile, and goes on if the one who asked first is cancelled.
            self._own = loop, loop.create_task(self._open())
        opening = self._own[1]
        try:
            return await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._own == (loop, opening):
                self._own = None  # the next one tries again
            raise

    async def _open(self) -> AsyncPool:
        dsn = await asyncio.to_thread(self._where.dsn)
        await (await _AsyncConnection.connect(dsn)).close()
        pool: AsyncPool = psycopg_pool.AsyncConnectionPool(
            dsn,
            connection_class=_AsyncConnection,
            check=_try_async,
            open=False,
            **_SIZES,
        )
        await pool.open()
        return pool


class _Where:
    """Which database a client works on: found at its first use, since importing an application reads nothing."""

    def __init__(self, database: object) -> None:
        if database is not None and not isinstance(
            database, str | psycopg_pool.ConnectionPool | psycopg_pool.AsyncConnectionPool
        ):
            raise TypeError(f"a client takes a dsn or a pool of psycopg_pool, not {type(database).__name__}")
        self._given = database if isinstance(database, str) else None
        self._found: str | None = None
        self._server: EmbeddedServer | None = None

    def dsn(self) -> str:
        """The dsn, not the word `embedded`: that server is started, and kept until `close`. Raises ConfigError."""
        if self._found is None:
            found = find_dsn(self._given, source="dsn")
            if found == EMBEDDED:
                from tasuki_mp import embedded

                self._server = embedded.start()
                found = self._server.dsn
            self._found = found
        return self._found

    def copy(self) -> _Where:
        return _Where(self._given)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = self._found = None


def _close(pid: int, pool: SyncPool) -> None:
    if pid == os.getpid():
        pool.close()


_living: Final[weakref.WeakSet[Pools | AsyncPools]] = weakref.WeakSet()
_inherited: Final[list[object]] = []
"""What belongs to the process that this one was forked from; never used, and never finalized."""


def _after_fork() -> None:
    for pools in list(_living):
        pools.after_fork()


os.register_at_fork(after_in_child=_after_fork)
