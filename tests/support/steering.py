"""Finished jobs put straight into the archive, as if they had run on any day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from tests.support.holder import HANDLER, QUEUE


def archive(
    conn: psycopg.Connection[Any],
    count: int,
    *,
    status: str = "completed",
    queue: str = QUEUE,
    handler: str = HANDLER,
    error: str | None = None,
    finished_at: datetime | None = None,
    created_at: datetime | None = None,
) -> list[int]:
    """That many finished jobs with new ids; the partition of their day must stand. `error` is "type: message"."""
    kind, _, message = (error or "").partition(": ")
    rows = conn.execute(
        """INSERT INTO tasuki.job_archive
             (id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
              created_at, scheduled_at, started_at, finished_at, lease_no)
           SELECT nextval('tasuki.job_id_seq'), %(handler)s, %(queue)s, %(status)s, '{"n": 1}', 1, 5, 0, 2,
              CASE WHEN %(kind)s <> '' THEN jsonb_build_object('type', %(kind)s::text, 'message', %(message)s::text) END,
              %(created)s, %(created)s, %(finished)s, %(finished)s, 1
             FROM generate_series(1, %(count)s)
           RETURNING id""",
        {
            "handler": handler,
            "queue": queue,
            "status": status,
            "kind": kind,
            "message": message,
            "created": created_at or finished_at or datetime.now(UTC),
            "finished": finished_at or datetime.now(UTC),
            "count": count,
        },
    ).fetchall()
    return [job_id for (job_id,) in rows]


def add_day(conn: psycopg.Connection[Any], day: datetime) -> None:
    """Partitions of that day, as they stood then."""
    for parent in ("job_archive_completed", "job_archive_failed", "attempt"):
        name = f"{parent}_{day:%Y%m%d}"
        conn.execute(f"CREATE TABLE tasuki.{name} (LIKE tasuki.{parent} INCLUDING ALL)".encode())
        first, last = (f"{when:%Y-%m-%d} 00:00+00" for when in (day, day + timedelta(days=1)))
        conn.execute(
            f"ALTER TABLE tasuki.{parent} ATTACH PARTITION tasuki.{name} FOR VALUES FROM ('{first}') TO ('{last}')".encode()
        )
