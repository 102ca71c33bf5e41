"""Taking back leases: from the dead, and from replies that never came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasuki_mp import store
from tests.support import jobs
from tests.support.holder import LEASE_FOR, Holder

Conn = psycopg.Connection[tuple[Any, ...]]


def test_only_expired_leases_of_the_named_owners_are_taken(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 3)
    expired, held = one.lease(2)
    others = two.lease_one()
    beat = store.Beat(expired.id, expired.lease_no, pid=77, slot=4, ran_for=5.0)
    store.heartbeat(one.beat_conn, owner=one.owner, lease_for=LEASE_FOR, beats=[beat])
    jobs.expire(conn, expired.id, others.id)
    rescued = two.call(store.rescue, owners=[one.owner, uuid4()], is_gone=False, limit=10)
    assert rescued == [store.Rescued(expired.id, "work", "default", "pending", attempt=1, slot=4)]
    assert [jobs.status(conn, lease.id) for lease in (expired, held, others)] == ["pending", "running", "running"]


def test_a_rescued_job_is_due_at_once_with_its_attempt_used(conn: Conn, one: Holder, two: Holder) -> None:
    one.register(host="far away")
    jobs.fill(conn, 1)
    lease = one.lease_one()
    beat = store.Beat(lease.id, lease.lease_no, pid=77, slot=4, ran_for=5.0)
    store.heartbeat(one.beat_conn, owner=one.owner, lease_for=LEASE_FOR, beats=[beat])
    jobs.expire(conn, lease.id)
    two.rescue(one.owner)
    row = jobs.live(conn, lease.id)
    assert row is not None
    assert (row["status"], row["attempt"], row["lease_no"], row["crashes"]) == ("pending", 1, 2, 0)
    assert (row["owner"], row["lease_expires_at"], row["started_at"], row["pid"], row["slot"]) == (None,) * 5
    assert abs(row["scheduled_at"] - datetime.now(UTC)) < timedelta(seconds=30)
    assert row["last_error"]["kind"] == "lost"
    assert "far away" in row["last_error"]["message"]
    (past,) = jobs.history(conn, lease.id)
    assert (past["lease_no"], past["kind"], past["owner"], past["attempt"]) == (1, "rescue", None, 1)
    waited, ran_for = past["usage"].pop("waited_seconds"), past["usage"].pop("seconds")
    assert past["usage"] == {"host": "far away", "pid": 77, "slot": 4}
    assert ran_for == pytest.approx(5, abs=1), "up to the last heartbeat"
    assert waited == pytest.approx(3595, abs=30), "due an hour ago, started five seconds ago"
    assert past["error"]["message"] == "the supervisor on far away that ran it has not prolonged its lease"
    assert past["started_at"] < past["ended_at"]
    again = two.lease_one()
    assert (again.lease_no, again.attempt) == (3, 2)


@pytest.mark.parametrize(
    ("max_attempts", "is_asked", "status"), [(1, False, "failed"), (1, True, "canceled"), (5, True, "canceled")]
)
def test_an_end_that_a_rescue_writes(
    conn: Conn, one: Holder, two: Holder, max_attempts: int, is_asked: bool, status: str
) -> None:
    job_id = jobs.add(conn, max_attempts=max_attempts)
    one.lease_one()
    if is_asked:
        jobs.cancel(conn, job_id)
    jobs.expire(conn, job_id)
    assert two.rescue(one.owner) == [status]
    row = jobs.final(conn, job_id)
    assert row is not None
    assert (row["status"], row["attempt"], row["lease_no"], row["owner"]) == (status, 1, 2, None)
    assert row["error"]["kind"] == {"failed": "lost", "canceled": "canceled"}[status]
    assert ("this was its only attempt" in row["error"]["message"]) is (max_attempts == 1)
    assert row["usage"] == {"host": "an unknown host"}, "it had not started, as far as anybody knows"
    assert "an unknown host" in row["error"]["message"]
    assert jobs.history(conn, job_id) == []


def test_an_owner_that_is_gone_loses_everything_at_once(conn: Conn, one: Holder, two: Holder) -> None:
    ids = jobs.fill(conn, 5)
    one.lease(5)
    assert two.rescue(one.owner) == []
    assert two.rescue(one.owner, is_gone=True, limit=3) == ["pending"] * 3
    assert two.rescue(one.owner, is_gone=True, limit=3) == ["pending"] * 2
    assert {jobs.status(conn, job_id) for job_id in ids} == {"pending"}
    assert "is dead" in jobs.history(conn, ids[0])[0]["error"]["message"]


def test_a_row_that_an_administrator_has_locked_waits_for_the_next_rescue(
    dsn: str, conn: Conn, one: Holder, two: Holder
) -> None:
    jobs.fill(conn, 2)
    leases = one.lease(2)
    jobs.expire(conn, *(lease.id for lease in leases))
    with psycopg.connect(dsn) as admin:
        admin.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (leases[0].id,))
        assert two.rescue(one.owner) == ["pending"]
    assert two.rescue(one.owner) == ["pending"]


def test_the_instant_can_be_given(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 1)
    one.lease_one()
    assert two.rescue(one.owner, now=datetime.now(UTC) + timedelta(seconds=30)) == []
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert two.rescue(one.owner, now=later) == ["pending"]
    assert two.lease() == []
    assert len(two.lease(now=later)) == 1


def test_nobody_is_rescued_from_nobody(one: Holder) -> None:
    assert one.rescue() == []


def test_unknown_leases_are_released_with_their_attempt(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 4)
    known, lost, canceled = one.lease(3)
    theirs = two.lease_one()
    due = {job_id: (jobs.live(conn, job_id) or {})["scheduled_at"] for job_id in (lost.id, canceled.id)}
    jobs.cancel(conn, canceled.id)
    assert one.release_unknown(known.id) == 2
    row = jobs.live(conn, lost.id)
    assert row is not None
    assert (row["status"], row["attempt"], row["lease_no"], row["scheduled_at"]) == ("pending", 0, 2, due[lost.id])
    assert [(past["kind"], past["owner"]) for past in jobs.history(conn, lost.id)] == [("release", None)]
    assert [jobs.status(conn, lease.id) for lease in (known, canceled, theirs)] == ["running", "canceled", "running"]
    assert one.beat(known, lost, canceled) == ["held", "lost", "lost"]
    assert one.end(lost, "completed") == ("stale", "completed")
    assert one.end(canceled, "completed") == ("stale", "completed")


def test_a_handlers_rule_for_lost_jobs_is_followed(conn: Conn, one: Holder, two: Holder) -> None:
    def declare(rule: str) -> None:
        conn.execute(
            """INSERT INTO tasuki.handler (name, queue, priority, max_attempts, options) VALUES ('work', 'default', 2, 5, %s)
               ON CONFLICT (name) DO UPDATE SET options = excluded.options""",
            [f'{{"rules": {{"lost": {rule}}}}}'],
        )

    jobs.fill(conn, 1)
    declare('{"after": 3600.0}')
    lease = one.lease_one()
    assert two.rescue(one.owner, is_gone=True) == ["pending"]
    row = jobs.live(conn, lease.id)
    assert row is not None
    assert (row["scheduled_at"] - datetime.now(UTC)).total_seconds() > 3000
    conn.execute("UPDATE tasuki.job SET scheduled_at = now()")
    declare('{"is_retry": false}')
    one.lease_one()
    assert two.rescue(one.owner, is_gone=True) == ["failed"]
    final = jobs.final(conn, lease.id)
    assert final is not None
    assert final["error"]["kind"] == "lost"
