"""What a heartbeat prolongs, and what it says about each lease."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import store
from tests.support import jobs
from tests.support.holder import LEASE_FOR, Holder

Conn = psycopg.Connection[tuple[Any, ...]]


def test_it_prolongs_what_is_held_and_only_that(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 3)
    mine, theirs = one.lease(2), two.lease(1)
    jobs.expire(conn, *(lease.id for lease in [*mine, *theirs]))
    assert one.beat(*mine, *theirs) == ["held", "held", "lost"]
    for lease, is_prolonged in ((mine[0], True), (mine[1], True), (theirs[0], False)):
        row = jobs.live(conn, lease.id)
        assert row is not None
        assert (row["lease_expires_at"] > datetime.now(UTC) + timedelta(seconds=50)) is is_prolonged


def test_a_lease_that_has_expired_but_was_not_taken_is_still_held(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    jobs.expire(conn, lease.id)
    assert one.beat(lease) == ["held"]


def test_a_lease_that_is_over_is_lost(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 3)
    finished, rescued, leased_again = one.lease(3)
    one.end(finished, "completed")
    jobs.expire(conn, rescued.id, leased_again.id)
    two.rescue(one.owner)
    again = [lease for lease in one.lease(2) if lease.id == leased_again.id]
    assert one.beat(finished, rescued, leased_again, *again) == ["lost", "lost", "lost", "held"]


def test_a_cancel_request_is_told_with_every_heartbeat(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    assert jobs.cancel(conn, lease.id) == "requested"
    assert [one.beat(lease), one.beat(lease)] == [["cancel"], ["cancel"]]


def test_a_row_that_somebody_has_locked_is_busy_and_stops_no_other(dsn: str, conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 3)
    leases = one.lease(3)
    with psycopg.connect(dsn) as admin:
        admin.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (leases[1].id,))
        assert one.beat(*leases) == ["held", "busy", "held"]
    assert one.beat(*leases) == ["held", "held", "held"]


def test_where_a_job_runs_is_written_once_known(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 3)
    leases = one.lease(3)
    first, second, third = leases
    beats = [
        store.Beat(third.id, third.lease_no, pid=33, slot=3, ran_for=30.0),
        store.Beat(first.id, first.lease_no),
        store.Beat(second.id, second.lease_no, pid=22, slot=2, ran_for=20.0),
    ]
    store.heartbeat(one.beat_conn, owner=one.owner, lease_for=LEASE_FOR, beats=beats)
    rows = [jobs.live(conn, lease.id) for lease in leases]
    assert [(row["pid"], row["slot"]) for row in rows if row] == [(None, None), (22, 2), (33, 3)]
    started = [row["started_at"] for row in rows if row]
    assert started[0] is None
    assert started[1] - started[2] > timedelta(seconds=9)
    one.beat(*leases)
    later = [jobs.live(conn, lease.id) for lease in leases]
    assert [row["pid"] for row in later if row] == [None, 22, 33], "a plain beat forgets nothing"
    assert [row["started_at"] for row in later if row] == started


def test_an_older_lease_of_the_same_job_in_the_book_does_no_harm(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 1)
    old = one.lease_one()
    jobs.expire(conn, old.id)
    two.rescue(one.owner)
    new = one.lease_one()
    beats = [
        store.Beat(new.id, new.lease_no, pid=1, slot=1, ran_for=1.0),
        store.Beat(old.id, old.lease_no, pid=2, slot=2, ran_for=2.0),
    ]
    answers = store.heartbeat(one.beat_conn, owner=one.owner, lease_for=LEASE_FOR, beats=beats)
    assert sorted(answers) == [(old.id, old.lease_no, "lost"), (new.id, new.lease_no, "held")]
    row = jobs.live(conn, new.id)
    assert row is not None
    assert row["pid"] == 1


def test_it_says_that_the_supervisor_lives_even_without_leases(conn: Conn, one: Holder, dsn: str) -> None:
    one.register()
    conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour'")
    assert one.beat() == []
    assert conn.execute("SELECT now() - seen_at < interval '1 minute' FROM tasuki.supervisor").fetchone() == (True,)
    with psycopg.connect(dsn) as admin:
        admin.execute("SELECT FROM tasuki.supervisor FOR UPDATE")
        assert one.beat() == [], "it waits for nobody"


def test_the_instant_can_be_given(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    one.beat(lease, now=datetime(2100, 1, 1, tzinfo=UTC))
    row = jobs.live(conn, lease.id)
    assert row is not None
    assert row["lease_expires_at"] == datetime(2100, 1, 1, 0, 1, tzinfo=UTC)


@pytest.mark.prunes
def test_its_updates_are_hot(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 400)
    leases = one.lease(400)
    conn.execute("VACUUM tasuki.job")
    before = _updates(one)
    for _ in range(10):
        one.beat(*leases)
    updated, hot = (after - at_first for after, at_first in zip(_updates(one), before, strict=True))
    assert updated == 4000
    assert hot / updated > 0.8


def _updates(holder: Holder) -> tuple[int, int]:
    conn = holder.beat_conn
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job'").fetchone()
    assert row is not None
    return row[0], row[1]
