"""A database that goes away from everybody but the test, without its server being stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from tests.support.postgres import with_database
from tests.support.waiting import wait_until


def terminate(conn: psycopg.Connection[Any], application: str = "") -> int:
    """End the other connections to this database whose application_name contains that; returns how many there were."""
    rows = conn.execute(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE %s""",
        (f"%{application}%",),
    ).fetchall()
    return len(rows)


def backend(conn: psycopg.Connection[Any], application: str) -> int:
    """The server's process for the connection with that name, once there is one."""

    def found() -> tuple[int] | None:
        return conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
            (application,),
        ).fetchone()

    row = wait_until(found, f"a connection named {application}")
    assert row is not None
    return row[0]


@contextmanager
def outage(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Everybody is thrown out and nobody is let in, but `conn` stays."""
    with psycopg.connect(with_database(dsn, "postgres"), autocommit=True) as admin:
        alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        name = sql.Identifier(conn.info.dbname)
        admin.execute(alter.format(name, sql.SQL("false")))
        try:
            terminate(conn)
            yield
        finally:
            admin.execute(alter.format(name, sql.SQL("true")))
