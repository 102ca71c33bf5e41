"""Rows that the database itself refuses, whoever inserts them, and rows at the edge that it takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support import jobs
from tests.support.holder import Holder

Conn = psycopg.Connection[tuple[Any, ...]]

RUNNING: dict[str, Any] = {
    "status": "running",
    "owner": uuid4(),
    "lease_expires_at": datetime(2030, 1, 1, tzinfo=UTC),
    "attempt": 1,
    "lease_no": 1,
}


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("queue_name", {"queue": ""}),
        ("queue_name", {"queue": "q" * 58}),
        ("queue_name", {"queue": "with space"}),
        ("queue_name", {"queue": "default\n"}),
        ("queue_name", {"queue": "'; drop table tasuki.job; --"}),
        ("queue_name", {"queue": "schlange-ß"}),
        ("job_handler_name", {"handler": ""}),
        ("job_handler_name", {"handler": "h" * 201}),
        ("job_priority", {"priority": 4}),
        ("job_priority", {"priority": -1}),
        ("job_status", {"status": "completed"}),
        ("instant", {"scheduled_at": "infinity"}),
        ("instant", {"scheduled_at": "-infinity"}),
        ("instant", {"scheduled_at": "1899-12-31"}),
        ("instant", {"scheduled_at": "2200-01-02"}),
        ("instant", {"created_at": "infinity"}),
        ("instant", {**RUNNING, "lease_expires_at": "infinity"}),
        ("instant", {**RUNNING, "cancel_requested_at": "-infinity"}),
        ("instant", {**RUNNING, "started_at": "infinity"}),
        ("job_attempt", {"max_attempts": 0}),
        ("job_attempt", {"attempt": -1}),
        ("job_attempt", {"attempt": 5, "max_attempts": 5}),
        ("job_attempt", {**RUNNING, "attempt": 6, "max_attempts": 5}),
        ("job_crashes", {"crashes": 1}),
        ("job_crashes", {"crashes": -1}),
        ("job_lease_no", {"lease_no": -1}),
        ("job_owner_running", {"status": "running"}),
        ("job_owner_running", {"owner": uuid4(), "lease_expires_at": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("job_owner_lease", {**RUNNING, "lease_expires_at": None}),
        ("job_owner_lease", {"lease_expires_at": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("job_pending_blank", {"cancel_requested_at": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("job_pending_blank", {"started_at": datetime(2030, 1, 1, tzinfo=UTC)}),
        ("job_pending_blank", {"pid": 1}),
        ("job_held", {"held_by": "spite"}),
        ("job_held", {**RUNNING, "held_by": "handler"}),
        ("job_payload_size", {"payload": '"' + "x" * 17_000_000 + '"'}),
    ],
)
def test_a_row_that_means_nothing_is_refused(conn: Conn, constraint: str, columns: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as raised:
        jobs.add(conn, **columns)
    assert raised.value.diag.constraint_name == constraint


@pytest.mark.parametrize(
    ("columns", "sqlstate"),
    [
        ({"payload": '"\\u0000"'}, "22P05"),
        ({"payload": '{"a": NaN}'}, "22P02"),
        ({"payload": '"\\ud800"'}, "22P02"),
        ({"payload": None}, "23502"),
        ({"handler": None}, "23502"),
        ({"max_attempts": 2**31}, "22003"),
    ],
)
def test_values_that_the_types_do_not_hold_are_refused(conn: Conn, columns: dict[str, Any], sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        jobs.add(conn, **columns)
    assert raised.value.sqlstate == sqlstate


@pytest.mark.parametrize(
    "columns",
    [
        {"queue": "q" * 57},
        {"queue": "aZ0_.:-"},
        {"handler": "ü" * 200},
        {"handler": "pkg.module:function <lambda>"},
        {"priority": 0},
        {"scheduled_at": "1900-01-01+00"},
        {"scheduled_at": "2199-12-31"},
        {"attempt": 4, "max_attempts": 5, "crashes": 4},
        {**RUNNING, "attempt": 5, "max_attempts": 5},
        {"payload": "[" + "1," * 500_000 + "1]"},
        {"max_attempts": 2**31 - 1},
    ],
)
def test_what_is_just_allowed_goes_in(conn: Conn, columns: dict[str, Any]) -> None:
    jobs.add(conn, **columns)


def test_a_poisonous_row_can_not_be_made_of_a_good_one_either(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, max_attempts=2)
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("UPDATE tasuki.job SET attempt = 2 WHERE id = %s", (job_id,))
    one.lease_one()
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("UPDATE tasuki.job SET status = 'pending' WHERE id = %s", (job_id,))
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("UPDATE tasuki.job SET owner = null, lease_expires_at = null WHERE id = %s", (job_id,))


@pytest.mark.parametrize("table", ["handler", "queue"])
def test_names_of_queues_are_checked_wherever_they_are_written(conn: Conn, table: str) -> None:
    statement = {
        "handler": "INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('h', %s, 2, 5)",
        "queue": "INSERT INTO tasuki.queue (name) VALUES (%s)",
    }[table]
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(statement, ("two words",))
    conn.execute(statement, ("word",))
