"""Connections as the statements of this package need them: autocommit, READ COMMITTED, bounded waits, index plans."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

# Every hot statement finds its rows by index. Without these, a plan made while the table was empty, or right after an
# ANALYZE of a drained table, reads the whole table at each lease.
PLANS: Final = "-c enable_seqscan=off -c enable_bitmapscan=off -c jit=off"
# What an administrator set for the database or the role must not change what the statements mean.
_MEANING: Final = r"-c default_transaction_isolation=read\ committed -c timezone=UTC"
_POOLER_REFUSED: Final = "unsupported startup parameter"


def _settings(dsn: str, *, statement_timeout: float, lock_timeout: float) -> str:
    given = conninfo_to_dict(dsn).get("options")
    bounds = (
        f"-c statement_timeout={round(statement_timeout * 1000)} -c lock_timeout={round(lock_timeout * 1000)}"
        f" -c idle_in_transaction_session_timeout={round(statement_timeout * 1000)}"
    )
    return " ".join([*([str(given)] if given else []), PLANS, _MEANING, bounds])


def _parameters(name: str, connect_timeout: float) -> dict[str, Any]:
    return {
        "autocommit": True,
        "application_name": f"tasuki-mp {name}",
        "client_encoding": "utf8",
        "connect_timeout": max(2, round(connect_timeout)),  # libpq takes 1 for 2
        "target_session_attrs": "read-write",
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,  # milliseconds
    }


def connect(
    dsn: str, *, name: str, connect_timeout: float = 10, statement_timeout: float = 30, lock_timeout: float = 5
) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection for the statements of this package; times are seconds, `name` is what pg_stat_activity shows.

    A pooler that refuses settings at the start (PgBouncer) gets a connection without them and without prepared
    statements: unprepared, the plans are good enough, and poolers share sessions.
    """
    parameters = _parameters(name, connect_timeout)
    settings = _settings(dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    try:
        return psycopg.connect(dsn, **parameters, options=settings)
    except psycopg.OperationalError as error:
        if _POOLER_REFUSED not in str(error):
            raise
    return psycopg.connect(dsn, **parameters, prepare_threshold=None)


async def connect_async(
    dsn: str, *, name: str, connect_timeout: float = 10, statement_timeout: float = 30, lock_timeout: float = 5
) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """The same as `connect`, for asyncio."""
    parameters = _parameters(name, connect_timeout)
    settings = _settings(dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    try:
        return await psycopg.AsyncConnection.connect(dsn, **parameters, options=settings)
    except psycopg.OperationalError as error:
        if _POOLER_REFUSED not in str(error):
            raise
    return await psycopg.AsyncConnection.connect(dsn, **parameters, prepare_threshold=None)
