"""Rows put in and read back, for tests that look at the tables themselves."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.support.holder import HANDLER, QUEUE
from tests.support.waiting import wait_until

Row = dict[str, Any]


def add(conn: psycopg.Connection[Any], **columns: Any) -> int:
    """Insert a job as plain SQL would; its id."""
    columns = {"queue": QUEUE, "handler": HANDLER, **columns}
    if isinstance(columns.get("payload"), dict):
        columns["payload"] = Jsonb(columns["payload"])
    statement = sql.SQL("INSERT INTO tasuki.job ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
    )
    row = conn.execute(statement, columns).fetchone()
    assert row is not None
    return cast("int", row[0])


def fill(conn: psycopg.Connection[Any], count: int, *, queue: str = QUEUE, handler: str = HANDLER) -> list[int]:
    """Insert that many jobs, due one microsecond after the other and all in the past; their ids in this order."""
    rows = conn.execute(
        """INSERT INTO tasuki.job (queue, handler, scheduled_at)
           SELECT %s, %s, now() - interval '1 hour' + n * interval '1 microsecond' FROM generate_series(1, %s) AS n
           RETURNING id""",
        (queue, handler, count),
    ).fetchall()
    return [job_id for (job_id,) in rows]


def live(conn: psycopg.Connection[Any], job_id: int) -> Row | None:
    """The job's row in the live table."""
    return _one(conn, "SELECT * FROM tasuki.job WHERE id = %s", job_id)


def final(conn: psycopg.Connection[Any], job_id: int) -> Row | None:
    """The job's row in the archive; fails if there are two."""
    return _one(conn, "SELECT * FROM tasuki.job_archive WHERE id = %s", job_id)


def wait_final(conn: psycopg.Connection[Any], job_id: int) -> Row:
    """The job's row in the archive, once it is there."""
    row = wait_until(lambda: final(conn, job_id), f"the end of job {job_id}")
    assert row is not None
    return row


def history(conn: psycopg.Connection[Any], job_id: int) -> list[Row]:
    """The job's attempts that did not end it, oldest first."""
    cursor = conn.cursor(row_factory=dict_row)
    return cursor.execute("SELECT * FROM tasuki.attempt WHERE job_id = %s ORDER BY lease_no", (job_id,)).fetchall()


def status(conn: psycopg.Connection[Any], job_id: int) -> str | None:
    """Where the job stands; None if it is nowhere. Fails if it is both live and final."""
    row, archived = live(conn, job_id), final(conn, job_id)
    assert row is None or archived is None, f"job {job_id} is in both tables"
    found = row or archived
    return None if found is None else found["status"]


def cancel(conn: psycopg.Connection[Any], job_id: int) -> str:
    row = conn.execute("SELECT tasuki.cancel(%s)", (job_id,)).fetchone()
    assert row is not None
    return cast("str", row[0])


def expire(conn: psycopg.Connection[Any], *job_ids: int) -> None:
    """Let these leases have run out a minute ago."""
    conn.execute(
        "UPDATE tasuki.job SET lease_expires_at = now() - interval '1 minute' WHERE id = any(%s)", (list(job_ids),)
    )


def _one(conn: psycopg.Connection[Any], query: str, job_id: int) -> Row | None:
    rows = conn.cursor(row_factory=dict_row).execute(query, (job_id,)).fetchall()
    assert len(rows) <= 1, f"job {job_id} is there {len(rows)} times"
    return rows[0] if rows else None
