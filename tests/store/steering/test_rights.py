"""What a role may do that does not own the tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tasuki_mp import Client, JobFilter
from tasuki_mp.config import Keep
from tasuki_mp.store.retention import prune
from tasuki_mp.store.steps import drive
from tests.support import jobs
from tests.support.steering import add_day, archive

Conn = psycopg.Connection[Any]


@pytest.fixture
def producer(dsn: str, conn: Conn) -> Iterator[str]:
    """The dsn of a role that may use the schema and its rows, and owns nothing."""
    role = f"producer_{conn.info.backend_pid}"
    conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    conn.execute(f"GRANT USAGE ON SCHEMA tasuki TO {role}")
    conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tasuki TO {role}")
    conn.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA tasuki TO {role}")
    try:
        yield make_conninfo(dsn, user=role, password="secret")  # noqa: S106  of a server that lives as long as the tests
    finally:
        conn.execute(f"DROP OWNED BY {role}")
        conn.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("way", ["cancel", "cancel_matching"])
def test_it_cancels_on_a_day_that_has_no_partition_yet(producer: str, conn: Conn, way: str) -> None:
    conn.execute(f"DROP TABLE tasuki.job_archive_failed_{datetime.now(UTC):%Y%m%d}")
    job_id = jobs.add(conn)
    with Client(producer) as client:
        if way == "cancel":
            assert client.cancel([job_id]) == {job_id: "canceled"}
        else:
            assert client.cancel_matching(JobFilter(queue="default")).done == 1
    assert jobs.status(conn, job_id) == "canceled"
    owners = conn.execute(
        "SELECT count(DISTINCT relowner) FROM pg_class WHERE relnamespace = 'tasuki'::regnamespace AND relkind IN ('r', 'p')"
    ).fetchone()
    assert owners == (1,), "the new table belongs to whom the others belong to"


def test_it_can_t_drop_days_and_then_takes_nothing_away(producer: str, conn: Conn) -> None:
    day = datetime.now(UTC) - timedelta(days=40)
    add_day(conn, day)
    (old,) = archive(conn, 1, status="failed", finished_at=day)
    conn.execute("INSERT INTO tasuki.checkpoint (job_id, lease_no, state) VALUES (%s, 1, '{}')", (old,))
    with psycopg.connect(producer, autocommit=True) as mine, pytest.raises(psycopg.errors.InsufficientPrivilege):
        drive(mine, prune(Keep()))
    assert conn.execute("SELECT job_id FROM tasuki.checkpoint").fetchall() == [(old,)]
    assert jobs.status(conn, old) == "failed"


def test_it_makes_no_more_than_a_hundred_days_of_partitions(producer: str) -> None:
    with psycopg.connect(producer, autocommit=True) as conn:
        for days in ("101", "-1", "NULL"):
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="0 to 100 days"):
                conn.execute(f"SELECT tasuki.ensure_partitions({days})")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("DROP TABLE tasuki.job_archive")
