"""Who is alive, the partitions, jobs that nobody knows, and what is left to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasuki_mp import store
from tasuki_mp.backoff import Backoff
from tasuki_mp.limits import Limits, Reach, Room, reach
from tasuki_mp.outcome import Policy
from tasuki_mp.wire import HandlerInfo
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.postgres import Postgres

Conn = psycopg.Connection[tuple[Any, ...]]
SCOPE: dict[str, Any] = {"queues": ["default"], "reach": Reach(("work",))}


def test_registering_again_changes_what_it_works_on(conn: Conn, one: Holder) -> None:
    one.register()
    since = conn.execute("SELECT started_at FROM tasuki.supervisor").fetchall()
    one.register(queues=["a", "b"], handlers=["x"], procs=9)
    rows = conn.execute("SELECT queues, handlers, procs FROM tasuki.supervisor").fetchall()
    assert rows == [(["a", "b"], ["x"], 9)]
    assert conn.execute("SELECT started_at FROM tasuki.supervisor").fetchall() == since


def test_a_supervisor_is_forgotten_once_nothing_of_its_runs(conn: Conn, one: Holder) -> None:
    one.register()
    jobs.fill(conn, 1)
    lease = one.lease_one()
    assert one.run(store.deregister, one.conn, one.owner) is False
    one.end(lease, "completed")
    assert one.run(store.deregister, one.conn, one.owner) is True
    assert one.run(store.deregister, one.conn, one.owner) is False


def test_who_else_may_hold_leases(conn: Conn, one: Holder, two: Holder) -> None:
    one.register()
    two.register(host="there", lease_seconds=10.0)
    assert one.call(store.other_supervisors, own=one.owner) == [
        store.OtherSupervisor(two.owner, "there", 100, 12345, "boot", "4026531836", is_stale=False, lease_seconds=10.0)
    ]
    conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '11 seconds'")
    assert [other.is_stale for other in one.call(store.other_supervisors, own=one.owner)] == [True]
    assert [other.is_stale for other in two.call(store.other_supervisors, own=two.owner)] == [False]


def test_an_owner_without_a_row_is_found_by_its_expired_leases(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 2)
    lease, _ = one.lease(2)
    assert two.call(store.other_supervisors, own=two.owner) == []
    jobs.expire(conn, lease.id)
    (other,) = two.call(store.other_supervisors, own=two.owner)
    assert (other.owner, other.host, other.is_stale) == (one.owner, "", True)
    assert one.call(store.other_supervisors, own=one.owner) == []


def test_handlers_are_remembered_and_the_newest_start_wins(conn: Conn, one: Holder) -> None:
    old = HandlerInfo(name="b", queue="slow", priority=3, max_attempts=1)
    one.run(store.register_handlers, one.conn, [old, HandlerInfo(name="a")], "1.0")
    new = HandlerInfo(name="b", policy=Policy(max_crashes=9, backoff=Backoff(), fence="kill"))
    one.run(store.register_handlers, one.conn, [new], "2.0")
    one.run(store.register_handlers, one.conn, [], "3.0")
    rows = conn.execute(
        "SELECT name, queue, priority, max_attempts, options ->> 'fence', version FROM tasuki.handler ORDER BY name"
    ).fetchall()
    assert rows == [("a", "default", 2, 5, "wait", "1.0"), ("b", "default", 2, 5, "kill", "2.0")]


def test_another_application_with_handlers_of_the_same_name(conn: Conn, one: Holder, two: Holder) -> None:
    me = one.register(app="shop:app", handlers=["a", "b", "c"])
    two.register(app="shop:app", handlers=["a"], host="there")
    assert one.call(store.same_handlers, me=me) == [], "the same on another host"
    two.register(app=None, handlers=["a"], host="there")
    assert one.call(store.same_handlers, me=me) == [], "of a release that does not say"
    two.register(app="bank:app", handlers=["x"], host="there")
    assert one.call(store.same_handlers, me=me) == []
    two.register(app="bank:app", handlers=["x", "b", "a"], host="there")
    assert one.call(store.same_handlers, me=me) == [store.Namesake("bank:app", ["a", "b"], "there")]
    conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour' WHERE owner = %s", (two.owner,))
    assert one.call(store.same_handlers, me=me) == [], "it is not alive any more"


def test_the_server_says_how_long_it_has_been_up(one: Holder) -> None:
    assert one.call(store.postmaster_uptime) > 0


def test_a_new_database_has_the_partitions_of_a_week_and_more_come_on_demand(conn: Conn, one: Holder) -> None:
    assert one.call(store.ensure_partitions) == 0
    assert one.call(store.ensure_partitions, days=9) == 6
    days = conn.execute(
        """SELECT count(*) FROM pg_inherits
            WHERE inhparent = 'tasuki.attempt'::regclass"""
    ).fetchone()
    assert days == (11,), "yesterday, today and nine days"


def test_ten_at_once_make_each_partition_once(dsn: str, conn: Conn) -> None:
    def ensure(_: int) -> int:
        with psycopg.connect(dsn, autocommit=True) as mine:
            row = mine.execute("SELECT tasuki.ensure_partitions(20)").fetchone()
            return int(row[0]) if row else -1

    with ThreadPoolExecutor(10) as pool:
        assert sorted(pool.map(ensure, range(10))) == [0] * 9 + [39]


def test_a_partition_that_was_detached_is_attached_again(conn: Conn, one: Holder) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y%m%d")
    conn.execute(f"ALTER TABLE tasuki.attempt DETACH PARTITION tasuki.attempt_{tomorrow}")
    assert one.call(store.ensure_partitions) == 1
    assert one.call(store.ensure_partitions) == 0


def test_days_are_utc_wherever_the_server_thinks_it_is(postgres: Postgres, template: str) -> None:
    with postgres.database(template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET timezone = 'Pacific/Kiritimati'")
        conn.execute("SELECT tasuki.ensure_partitions(8)")
        conn.execute("SET timezone = 'UTC'")
        bounds = conn.execute(
            """SELECT pg_get_expr(relpartbound, oid) FROM pg_class
                WHERE relname ~ '^attempt_[0-9]{8}$' ORDER BY relname"""
        ).fetchall()
    assert len(bounds) == 10
    assert all(bound.count("00:00:00+00") == 2 for (bound,) in bounds)


def test_a_reader_delays_no_new_partition(dsn: str, conn: Conn, one: Holder) -> None:
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM tasuki.job_archive")
        assert one.call(store.ensure_partitions, days=8) == 3


def test_history_of_a_live_job_is_bounded(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2)
    for _ in range(5):
        for lease in one.lease(2):
            one.end(lease, "snooze")
    first, second = (job_id for (job_id,) in conn.execute("SELECT id FROM tasuki.job ORDER BY id"))
    assert one.run(store.trim_attempts, one.conn, [first], keep=3) == 2
    assert one.run(store.trim_attempts, one.conn, [first], keep=3) == 0
    assert [past["lease_no"] for past in jobs.history(conn, first)] == [3, 4, 5]
    assert len(jobs.history(conn, second)) == 5


def test_when_the_next_job_is_due(conn: Conn, one: Holder) -> None:
    def due() -> float | None:
        ahead: store.Ahead = one.call(store.next_due, **SCOPE)
        assert ahead.limited == []
        assert abs(ahead.looked_at - datetime.now(UTC)) < timedelta(minutes=1)
        return ahead.seconds

    assert due() is None
    jobs.add(conn, queue="elsewhere")
    jobs.add(conn, handler="somebody else's")
    jobs.add(conn, held_by="handler")
    assert due() is None
    jobs.add(conn, priority=3, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    assert due() == pytest.approx(3600, abs=60)
    jobs.add(conn, priority=0, scheduled_at=datetime.now(UTC) + timedelta(hours=2))
    assert due() == pytest.approx(3600, abs=60)
    jobs.add(conn)
    assert (due() or 1) <= 0
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('default', now())")
    assert due() is None
    assert one.call(store.paused_queues) == ["default"]


def age_jobs(conn: Conn) -> None:
    conn.execute("UPDATE tasuki.job SET created_at = now() - interval '1 hour'")


def test_jobs_of_unknown_handlers_are_held_until_one_comes(conn: Conn, one: Holder) -> None:
    unknown = [jobs.add(conn, handler="nobody's") for _ in range(3)]
    known = jobs.add(conn)
    one.register()
    hold: dict[str, Any] = {"queues": ["default"], "grace": 600}
    assert one.call(store.hold_unknown, **hold) == 0, "they have not waited long enough"
    age_jobs(conn)
    assert one.call(store.hold_unknown, **hold, limit=2) == 2
    assert one.call(store.hold_unknown, **hold) == 1
    assert one.call(store.hold_unknown, **hold) == 0
    assert [lease.id for lease in one.lease(10, handlers=["nobody's", "work"])] == [known]
    assert one.call(store.release_held, handlers=["nobody's"], limit=2) == 2
    assert one.call(store.release_held, handlers=["nobody's"], limit=2) == 1
    assert one.call(store.release_held, handlers=["nobody's"], limit=2) == 0
    assert [lease.id for lease in one.lease(10, handlers=["nobody's"])] == unknown


@pytest.mark.parametrize("way", ["supervisor", "handler", "just stopped"])
def test_a_handler_that_was_there_lately_is_no_reason_to_hold(conn: Conn, one: Holder, way: str) -> None:
    jobs.add(conn)
    age_jobs(conn)
    one.run(store.register_handlers, one.conn, [HandlerInfo(name="work")], "1")
    one.register()
    if way == "supervisor":
        conn.execute("UPDATE tasuki.handler SET last_seen = now() - interval '1 hour'")
    elif way == "handler":
        conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour'")
    else:
        conn.execute("UPDATE tasuki.handler SET last_seen = now() - interval '1 hour'")
        one.run(store.deregister, one.conn, one.owner)
    assert one.call(store.hold_unknown, queues=["default"], grace=600) == 0
    conn.execute("UPDATE tasuki.handler SET last_seen = now() - interval '1 hour'")
    conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour'")
    assert one.call(store.hold_unknown, queues=["default"], grace=600) == 1


def test_future_jobs_and_other_queues_are_not_held(conn: Conn, one: Holder) -> None:
    jobs.add(conn, handler="nobody's", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    jobs.add(conn, handler="nobody's", queue="elsewhere")
    age_jobs(conn)
    assert one.call(store.hold_unknown, queues=["default"], grace=0) == 0


def test_what_is_too_large_for_this_host_is_no_work_for_it(conn: Conn, one: Holder) -> None:
    scope = {"queues": ["default"], "reach": reach({"work": Limits(memory=100), "huge": Limits(cpus=3)}, Room(99, 2))}
    jobs.add(conn)
    jobs.add(conn, handler="huge")
    jobs.add(conn, handler="nobody's")
    assert one.call(store.next_due, **scope)[:2] == (None, [])
    left = one.call(store.drain_left, **scope, due_only=True)
    assert (left.waiting, left.larger, left.unknown) == (0, {"work": 1, "huge": 1}, {"nobody's": 1})
    jobs.add(conn, limits='{"memory": 99}')
    assert (one.call(store.next_due, **scope)[0] or 1) <= 0
    assert one.call(store.drain_left, **scope, due_only=True).waiting == 1


def test_what_is_left_to_drain(conn: Conn, one: Holder, two: Holder) -> None:
    def left(*, due_only: bool = False) -> store.Left:
        return one.call(store.drain_left, **SCOPE, due_only=due_only)

    assert left() == store.Left(waiting=0, running=0, next_due=None)
    jobs.fill(conn, 2)
    two.lease(1)
    jobs.add(conn, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    jobs.add(conn, handler="nobody's")
    jobs.add(conn, handler="nobody's", held_by="handler")
    jobs.add(conn, handler="nobody's", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    jobs.add(conn, handler="nobody's", queue="elsewhere")
    seen = left()
    assert (seen.waiting, seen.running, seen.unknown) == (2, 1, {})
    assert (seen.next_due or 1) < 0
    assert left(due_only=True).waiting == 1
    one.end(one.lease_one(), "completed")
    conn.execute("DELETE FROM tasuki.job WHERE status = 'running'")
    seen = left(due_only=True)
    assert (seen.waiting, seen.running, seen.unknown) == (0, 0, {"nobody's": 2})
    assert seen.next_due == pytest.approx(3600, abs=60)
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('default', now())")
    seen = left()
    assert (seen.waiting, seen.running, seen.next_due) == (0, 0, None)
    assert (seen.unknown, seen.paused) == ({"nobody's": 3}, {"default": 1})


def test_counting_what_is_left_stops_at_a_thousand(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1500)
    assert one.call(store.drain_left, **SCOPE, due_only=False).waiting == 1000


def drain_left(holder: Holder, *, due_only: bool = False, **more: Any) -> store.Left:
    return holder.call(store.drain_left, **{**SCOPE, **more}, due_only=due_only)


def pause(conn: Conn, queue: str = "default") -> None:
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES (%s, now())", (queue,))


def needs(conn: Conn, job: int, *needed: int) -> int:
    """Let the job wait for these; its id."""
    assert conn.execute("SELECT tasuki.depend(%s, %s)", (job, list(needed))).fetchone() == ("held",)
    return job


def test_jobs_held_for_a_key_are_waited_for_unless_their_queue_is_paused(conn: Conn, one: Holder) -> None:
    for _ in range(3):
        jobs.add(conn, key="tenant", held_by="key")
    jobs.add(conn, key="tenant", held_by="key", handler="nobody's")
    jobs.add(conn, key="tenant", held_by="key", limits='{"cpus": 3}')
    scope = {"reach": reach({"work": Limits()}, Room(cpus=2))}
    assert drain_left(one, **scope).waiting == 3
    pause(conn)
    left = drain_left(one, **scope)
    assert (left.waiting, left.paused, left.unknown, left.larger) == (0, {"default": 4}, {"nobody's": 1}, {})


def test_jobs_held_for_a_key_wait_for_their_time_too(conn: Conn, one: Holder) -> None:
    jobs.add(conn, key="tenant", held_by="key", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    assert drain_left(one, due_only=True) == store.Left(waiting=0, running=0, next_due=None)
    assert drain_left(one).waiting == 1


def test_what_was_held_for_want_of_its_handler_is_waited_for_once_that_is_here(conn: Conn, one: Holder) -> None:
    jobs.add(conn, held_by="handler")
    jobs.add(conn, held_by="handler", queue="elsewhere")
    jobs.add(conn, held_by="handler", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    jobs.add(conn, held_by="handler", handler="huge", limits='{"cpus": 1}')
    scope = {"reach": reach({"work": Limits(), "huge": Limits(cpus=3)}, Room(cpus=2))}
    assert drain_left(one, **scope).waiting == 3
    assert drain_left(one, **scope, due_only=True).waiting == 2
    pause(conn)
    left = drain_left(one, **scope)
    assert (left.waiting, left.paused) == (0, {"default": 3})


@pytest.mark.parametrize("where", ["here", "another queue", "nobody's"])
def test_a_job_that_waits_for_one_that_runs_is_waited_for(conn: Conn, one: Holder, two: Holder, where: str) -> None:
    need = jobs.add(conn, **{"here": {}, "another queue": {"queue": "b"}, "nobody's": {"handler": "nobody's"}}[where])
    first = needs(conn, jobs.add(conn), need)
    needs(conn, jobs.add(conn), first)
    entry = store.LeaseEntry(queue="b" if where == "another queue" else "default", priority=2, limit=1)
    (lease,) = two.lease(1, entries=[entry], handlers=["work", "nobody's"])
    left = drain_left(one)
    assert left.waiting == 1, "the second can't be next, so it need not be counted"
    assert left.running == (1 if where == "here" else 0)
    two.end(lease, "completed")
    assert drain_left(one).waiting == 1, "now it can be leased"
    one.end(one.lease_one(), "completed")
    one.end(one.lease_one(), "completed")
    assert drain_left(one) == store.Left(waiting=0, running=0, next_due=None)


@pytest.mark.parametrize("where", ["another queue", "nobody's", "paused", "larger"])
def test_a_job_that_waits_for_one_that_is_left_is_left(conn: Conn, one: Holder, two: Holder, where: str) -> None:
    columns: dict[str, Any] = {
        "another queue": {"queue": "b"},
        "nobody's": {"handler": "nobody's"},
        "paused": {"queue": "paused"},
        "larger": {"limits": '{"cpus": 3}'},
    }[where]
    pause(conn, "paused")
    need = jobs.add(conn, **columns)
    scope = {"queues": ["default", "paused"], "reach": reach({"work": Limits()}, Room(cpus=2))}
    running = jobs.add(conn, queue="b")
    first = needs(conn, jobs.add(conn), need)
    needs(conn, jobs.add(conn), first)
    needs(conn, jobs.add(conn), need, running)
    needs(conn, jobs.add(conn, handler="nobody's"), need)
    needs(conn, jobs.add(conn, queue="elsewhere"), need)
    conn.execute("UPDATE tasuki.job SET scheduled_at = now() - interval '1 hour' WHERE id = %s", (running,))
    (lease,) = two.lease(1, entries=[store.LeaseEntry(queue="b", priority=2, limit=1)])
    assert lease.id == running
    left = drain_left(one, **scope)
    assert (left.waiting, left.running) == (0, 0)
    assert left.dependent == {"work": store.Waits(3, need)}
    assert left.unknown == {"nobody's": 2 if where == "nobody's" else 1}
    assert left.paused == ({"paused": 1} if where == "paused" else {})
    assert left.larger == ({"work": 1} if where == "larger" else {})


def test_jobs_that_wait_for_each_other_are_left(conn: Conn, one: Holder) -> None:
    first, second = jobs.add(conn), jobs.add(conn)
    needs(conn, first, second)
    needs(conn, second, first)
    left = drain_left(one)
    assert (left.waiting, left.dependent) == (0, {"work": store.Waits(2, second)})


def test_a_job_that_waits_for_others_is_not_due(conn: Conn, one: Holder, two: Holder) -> None:
    need = jobs.add(conn, queue="b")
    needs(conn, jobs.add(conn), need)
    pause(conn, "c")
    needs(conn, jobs.add(conn, queue="c"), need)
    nothing = store.Left(waiting=0, running=0, next_due=None)
    assert drain_left(one, due_only=True, queues=["default", "c"]) == nothing
    two.lease(1, entries=[store.LeaseEntry(queue="b", priority=2, limit=1)])
    assert drain_left(one, due_only=True, queues=["default", "c"]) == nothing
    assert drain_left(one, queues=["default", "c"]).waiting == 1


def test_each_job_that_is_left_is_told_once(conn: Conn, one: Holder) -> None:
    jobs.add(conn, limits='{"cpus": 3}')
    jobs.add(conn, handler="nobody's", limits='{"cpus": 3}')
    jobs.add(conn, queue="paused", limits='{"cpus": 3}')
    jobs.add(conn, queue="paused", handler="nobody's")
    pause(conn, "paused")
    scope = {"queues": ["default", "paused"], "reach": reach({"work": Limits()}, Room(cpus=2))}
    left = drain_left(one, **scope)
    assert (left.unknown, left.paused, left.larger) == ({"nobody's": 2}, {"paused": 1}, {"work": 1})


def test_nobody_s_expired_lease_is_our_own(one: Holder) -> None:
    assert one.call(store.other_supervisors, own=uuid4()) == []
