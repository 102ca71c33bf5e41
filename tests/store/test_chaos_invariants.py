"""The invariants of a chaos run can fail: each of these lies is found, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

import scripts.chaos.invariants
from scripts.chaos.invariants import check

SCHEMA = Path(scripts.chaos.invariants.__file__).with_name("schema.sql")

HONEST = """
INSERT INTO tasuki.job (id, handler, queue) VALUES (1, 'noop', 'chaos-a');
INSERT INTO chaos.ledger (id, kind) VALUES (1, 'noop');
UPDATE tasuki.job SET status = 'running', owner = gen_random_uuid(), lease_no = 1, attempt = 1, lease_expires_at = now();
INSERT INTO chaos.execution VALUES (1, 1, 1, 'A.1', 100, clock_timestamp(), clock_timestamp() + interval '1 ms');
BEGIN;
INSERT INTO tasuki.job_archive (id, handler, queue, status, payload, attempt, max_attempts, crashes, priority,
                                created_at, scheduled_at, finished_at, lease_no, owner)
SELECT id, handler, queue, 'completed', payload, attempt, max_attempts, crashes, priority,
       created_at, scheduled_at, now(), lease_no, owner FROM tasuki.job;
DELETE FROM tasuki.job;
COMMIT;
"""

EXECUTED = (
    "INSERT INTO chaos.execution VALUES (1, %s, 1, 'B.1', 200, now() + interval '1 second', now() + interval '2 s')"
)
ARCHIVED = "UPDATE tasuki.job_archive SET "
LIES = {
    "lost": "INSERT INTO chaos.ledger (id, kind) VALUES (2, 'noop')",
    "invented": "DELETE FROM chaos.ledger",
    "transitions": "INSERT INTO chaos.audit (id, old, new, lease_no) VALUES (1, 'completed', 'pending', 1)",
    "one end": "INSERT INTO chaos.audit (id, old, new, lease_no) VALUES (1, 'running', 'completed', 1)",
    "lease_no falls": "INSERT INTO chaos.audit (id, old, new, lease_no) VALUES (1, 'running', 'pending', 0)",
    "leased twice": "INSERT INTO chaos.audit (id, old, new, lease_no) VALUES (1, 'pending', 'running', 1)",
    "dishonest duplicate": "INSERT INTO chaos.said VALUES ('A.1', 'duplicate', 1, 7)",
    "dishonest stale": "INSERT INTO chaos.said VALUES ('A.1', 'stale', 1, 1)",
    "unearned": "UPDATE chaos.execution SET t1 = NULL",
    "executed twice": EXECUTED % 1,
    "executed unleased": EXECUTED % 7,
    "unrecorded": EXECUTED % 7,
    "at most once": "UPDATE chaos.ledger SET kind = 'once'; " + EXECUTED % 1,
    "overlap": EXECUTED % 7 + "; UPDATE chaos.execution SET t1 = now() + interval '1 minute'",
    "canceled and ran": "INSERT INTO chaos.canceled (id, verdict) VALUES (1, 'canceled')",
    "canceled unasked": ARCHIVED + "status = 'canceled', error = '{}'",
    "limits": ARCHIVED + "crashes = 4",
    "pills": "UPDATE chaos.ledger SET kind = 'pill'",
    "outcomes": ARCHIVED + """status = 'failed', error = '{"kind": "lost"}'""",
    "blame": ARCHIVED + "crashes = 1",
    "started and refunded": """INSERT INTO tasuki.attempt (job_id, lease_no, owner, attempt, kind, ended_at)
                               VALUES (1, 1, gen_random_uuid(), 1, 'release', now())""",
    "late rescue": """INSERT INTO chaos.audit (id, old, new, lease_no, old_lease_no, old_expires_at)
                      VALUES (1, 'running', 'pending', 2, 1, now() - interval '1 hour')""",
    "unfinished": "INSERT INTO tasuki.job (id, handler) VALUES (3, 'noop'); INSERT INTO chaos.ledger VALUES (3, 'noop')",
    "stuck": """INSERT INTO tasuki.job (id, handler, status, owner, lease_expires_at)
                VALUES (3, 'noop', 'running', gen_random_uuid(), now() - interval '3 minutes');
                INSERT INTO chaos.ledger VALUES (3, 'noop')""",
    "registered": """INSERT INTO tasuki.supervisor
                       (owner, host, pid, pid_started, boot_id, pid_ns, version, procs, queues, handlers, lease_seconds)
                     VALUES (gen_random_uuid(), 'h', 1, 1, '', '', '', 1, '{}', '{}', 60)""",
}


@pytest.fixture
def after_a_run(conn: psycopg.Connection[tuple[Any, ...]]) -> psycopg.Connection[tuple[Any, ...]]:
    conn.execute(SCHEMA.read_bytes())
    conn.execute(HONEST.encode())
    return conn


def broken(conn: psycopg.Connection[tuple[Any, ...]]) -> set[str]:
    return {verdict.name for verdict in check(conn, lease=5.0) if verdict.rows}


def test_an_honest_run_breaks_nothing(after_a_run: psycopg.Connection[tuple[Any, ...]]) -> None:
    assert broken(after_a_run) == set()


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found(after_a_run: psycopg.Connection[tuple[Any, ...]], name: str) -> None:
    after_a_run.execute("ALTER TABLE tasuki.job_archive DISABLE TRIGGER chaos_final")
    after_a_run.execute(LIES[name].encode())
    assert name in broken(after_a_run)


def test_a_final_state_that_is_changed_is_an_error_at_once(after_a_run: psycopg.Connection[tuple[Any, ...]]) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="final state was changed"):
        after_a_run.execute("UPDATE tasuki.job_archive SET status = 'failed', result = NULL")
