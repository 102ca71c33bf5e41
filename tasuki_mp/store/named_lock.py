"""A lock by name, held by a connection: gone with it, whatever happens to the program."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from tasuki_mp import sql
from tasuki_mp.errors import ConfigError, LockedError

_TRY: Final = sql.query("try_named_lock")
_HOLDER: Final = sql.query("named_lock_holder")

Connection = psycopg.Connection[tuple[Any, ...]]


def take(conn: Connection, name: str) -> None:
    """Take the lock, until the connection is closed. Raises LockedError at once if another one holds it.

    Raises ConfigError behind a pooler: it may give the session that holds the lock to somebody else.
    """
    row = conn.execute(_TRY, {"name": name}).fetchone()
    is_taken, pid = row or (False, 0)
    if pid != conn.info.backend_pid:
        raise ConfigError(
            "--lock needs a connection of its own to Postgres, and this one goes through a pooler such as PgBouncer:"
            " name Postgres itself in the dsn"
        )
    if not is_taken:
        raise LockedError(f"another run holds the lock {name!r}{_holder(conn, name)}; nothing was done")


def _holder(conn: Connection, name: str) -> str:
    row = conn.execute(_HOLDER, {"name": name}).fetchone()
    if row is None:
        return ""
    address, since = row[1] or "this host", row[2]
    return f" (since {since:%Y-%m-%d %H:%M:%S} UTC, from {address})"
