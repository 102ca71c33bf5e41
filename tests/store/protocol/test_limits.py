"""A queue's limits: how many of it, and of one key in it, run at a time, whoever leases and however the jobs end."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any

import psycopg

from tasuki_mp import store
from tasuki_mp.job import Lease
from tasuki_mp.limits import Limits, Reach, Room, reach
from tests.support import jobs
from tests.support.holder import HANDLER, LEASE_FOR, QUEUE, Holder

Conn = psycopg.Connection[tuple[Any, ...]]
EVERYWHERE = Reach((HANDLER,))


def _limit(conn: Conn, most: int | None, per_key: int | None = None) -> None:
    conn.execute("SELECT tasuki.limit_queue(%s, %s, %s)", [QUEUE, most, per_key])


def _lease(holder: Holder, limit: int = 10, reach: Reach = EVERYWHERE) -> list[Lease]:
    return holder.call(
        store.lease_limited,
        owner=holder.owner,
        lease_for=LEASE_FOR,
        queue=QUEUE,
        reach=reach,
        limit=limit,
        sent_at=0.0,
    )


def test_no_more_than_the_limit_run_at_a_time(conn: Conn, one: Holder, two: Holder) -> None:
    _limit(conn, 3)
    jobs.fill(conn, 10)
    first = _lease(one, 2)
    second = _lease(two)
    assert (len(first), len(second), len(_lease(one))) == (2, 1, 0)
    one.end(first[0], "completed")
    one.end(first[1], "retry", delay=60.0)
    assert len(_lease(two)) == 2


def test_whoever_does_not_know_of_the_limit_gets_nothing(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2)
    _limit(conn, 1)
    assert one.lease(2) == []
    _limit(conn, None)
    assert len(one.lease(2)) == 2


def test_what_ran_when_the_limit_was_set_counts(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 5)
    before = one.lease(2)
    _limit(conn, 3)
    assert len(_lease(one)) == 1
    one.end(before[0], "completed")
    assert len(_lease(one)) == 1


def test_a_lease_that_began_before_the_limit_counts_whenever_it_commits(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 10)
    one.run(one.conn.execute, "BEGIN")
    before = one.lease(2)
    _limit(conn, 3)
    assert _lease(two) == [], "nobody can say yet how many run"
    one.run(one.conn.execute, "COMMIT")
    assert len(_lease(two)) == 1
    assert _lease(two) == []
    one.end(before[0], "completed")
    assert len(_lease(two)) == 1


def test_what_somebody_writes_to_counts_too(dsn: str, conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 5)
    before = one.lease(2)
    with psycopg.connect(dsn) as writer:
        writer.execute("UPDATE tasuki.job SET cancel_requested_at = now() WHERE id = %s", [before[0].id])
        _limit(conn, 3)
        assert len(_lease(two)) == 1
    assert _lease(two) == []
    one.end(before[0], "canceled")
    assert len(_lease(two)) == 1


def test_the_key_of_what_is_not_counted_yet_is_passed_over_and_not_held(
    dsn: str, conn: Conn, one: Holder, two: Holder
) -> None:
    ids = [jobs.add(conn, key="k") for _ in range(3)]
    (before,) = one.lease(1)
    with psycopg.connect(dsn) as writer:
        writer.execute("UPDATE tasuki.job SET cancel_requested_at = now() WHERE id = %s", [before.id])
        _limit(conn, None, 1)
        assert _lease(two) == []
    one.end(before, "completed")
    assert [lease.id for lease in _lease(two)] == [ids[1]]


def test_a_transaction_that_locks_jobs_for_long_keeps_nobody_from_leasing_under_a_limit(
    dsn: str, conn: Conn, one: Holder
) -> None:
    ids = jobs.fill(conn, 3)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", [ids[0]])
        _limit(conn, 2)
        assert _lease(one) == []
        conn.execute("UPDATE tasuki.queue SET limited_at = now() - interval '2 minutes'")
        assert [lease.id for lease in _lease(one)] == ids[1:]


def test_a_limit_that_is_lifted_and_set_again_waits_again(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 10)
    _limit(conn, 3)
    assert len(_lease(one, 1)) == 1
    _limit(conn, None)
    two.run(two.conn.execute, "BEGIN")
    assert len(two.lease(2)) == 2
    _limit(conn, 4)
    assert _lease(one) == []
    two.run(two.conn.execute, "COMMIT")
    _limit(conn, 5)
    assert len(_lease(one)) == 2


def test_a_limit_of_none_at_all_stops_the_queue(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2)
    _limit(conn, 0)
    assert _lease(one) == []


def test_a_busy_key_is_passed_over_and_comes_back_when_it_is_free(conn: Conn, one: Holder) -> None:
    _limit(conn, None, 1)
    busy = [jobs.add(conn, key="a") for _ in range(3)]
    other = jobs.add(conn, key="b")
    without = [jobs.add(conn) for _ in range(2)]
    leases = _lease(one)
    assert {lease.id for lease in leases} == {busy[0], other, *without}
    assert _lease(one) == []
    row = jobs.live(conn, busy[1])
    assert row is not None
    assert row["held_by"] == "key"
    one.end(next(lease for lease in leases if lease.id == busy[0]), "completed")
    assert [lease.id for lease in _lease(one)] == [busy[1]]


def test_every_end_of_a_job_frees_its_key(conn: Conn, one: Holder, two: Holder) -> None:
    _limit(conn, None, 1)
    for _ in range(6):
        jobs.add(conn, key="a", max_attempts=9)
    seen = set()
    for end in ("completed", "failed", "canceled"):
        (lease,) = _lease(one)
        seen.add(lease.id)
        one.end(lease, end)
    (lease,) = _lease(one)
    one.end(lease, "snooze", delay=60.0)
    (lease,) = _lease(one)
    assert two.rescue(one.owner, is_gone=True) == ["pending"]
    (lease,) = _lease(one)
    assert one.release_unknown() == 1
    assert len(_lease(one)) == 1


def test_lifting_the_limit_lets_go_of_what_it_held(conn: Conn, one: Holder) -> None:
    _limit(conn, None, 1)
    for _ in range(3):
        jobs.add(conn, key="a")
    assert len(_lease(one)) == 1
    _limit(conn, None)
    assert len(one.lease(5)) == 2


def test_limits_hold_while_eight_race(dsn: str, conn: Conn) -> None:
    total, most = 160, 3
    for number in range(total):
        jobs.add(conn, key=f"k{number % 5}")
    _limit(conn, most, 1)
    start, guard = Barrier(8), Lock()
    running: Counter[str] = Counter()
    keys = dict(conn.execute("SELECT id, key FROM tasuki.job").fetchall())
    done: list[int] = []
    broken: list[str] = []

    def rush(_: int) -> None:
        with Holder(dsn) as holder:
            start.wait()
            while len(done) < total:
                leases = _lease(holder, 2)
                with guard:
                    running.update(keys[lease.id] for lease in leases)
                    if running.total() > most or max(running.values(), default=0) > 1:
                        broken.append(str(running))
                for lease in leases:
                    # Taken off before the end is written: what counts is never more than what the database counts.
                    with guard:
                        running[keys[lease.id]] -= 1
                        done.append(lease.id)
                    holder.end(lease, "completed")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rush, range(8)))
    assert not broken
    assert sorted(done) == sorted(keys)


def test_what_is_too_large_for_the_host_is_passed_over(conn: Conn, one: Holder) -> None:
    _limit(conn, 3)
    jobs.add(conn, limits='{"memory": 101}')
    jobs.add(conn, handler="large")
    fitting = [jobs.add(conn), jobs.add(conn, handler="large", limits='{"memory": 7}')]
    here = reach({HANDLER: Limits(), "large": Limits(memory=200)}, Room(memory=100))
    assert [lease.id for lease in _lease(one, reach=here)] == fitting
