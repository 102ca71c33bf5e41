"""Which jobs a lease takes, in what order, and what it says about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp.limits import Limits, Reach, Room, reach
from tasuki_mp.store import LeaseEntry
from tests.support import jobs
from tests.support.holder import HANDLER, QUEUE, Holder

Conn = psycopg.Connection[tuple[Any, ...]]
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def entry(**changes: Any) -> LeaseEntry:
    return LeaseEntry(**{"queue": QUEUE, "priority": 2, "limit": 100, **changes})


def test_a_lease_says_what_the_child_and_the_leaser_need(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, payload={"path": "a.png"}, priority=1, max_attempts=7, scheduled_at=PAST, created_at=PAST)
    taken = one.lease_one()
    assert (taken.id, taken.lease_no, taken.queue, taken.handler, taken.priority) == (job_id, 1, QUEUE, HANDLER, 1)
    assert (taken.attempt, taken.max_attempts, taken.crashes) == (1, 7, 0)
    assert taken.payload == '{"path": "a.png"}'
    assert taken.scheduled_at == PAST
    assert taken.waited == pytest.approx((datetime.now(UTC) - PAST).total_seconds(), abs=60)
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["owner"], row["attempt"], row["lease_no"]) == ("running", one.owner, 1, 1)
    left = (row["lease_expires_at"] - datetime.now(UTC)).total_seconds()
    assert 50 < left <= 60


def test_a_job_is_leased_once(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.fill(conn, 10)
    first = one.lease(6)
    second = two.lease(100)
    assert len(first) == 6
    assert len(second) == 4
    assert {lease.id for lease in first}.isdisjoint(lease.id for lease in second)
    assert one.lease(100) == []


def test_priority_then_due_time_then_id(conn: Conn, one: Holder) -> None:
    late = jobs.add(conn, priority=3, scheduled_at=PAST)
    second = jobs.add(conn, priority=2, scheduled_at=PAST + timedelta(seconds=1))
    first = jobs.add(conn, priority=2, scheduled_at=PAST)
    tied = jobs.add(conn, priority=2, scheduled_at=PAST + timedelta(seconds=1))
    urgent = jobs.add(conn, priority=0)
    assert [lease.id for lease in one.lease(10)] == [urgent, first, second, tied, late]


def test_entries_come_in_the_order_of_preference_each_with_its_limit(conn: Conn, one: Holder) -> None:
    a = jobs.fill(conn, 5, queue="a")
    b = jobs.fill(conn, 5, queue="b")
    leases = one.lease(6, entries=[entry(queue="b", limit=2), entry(queue="a", limit=3), entry(queue="empty")])
    assert [lease.id for lease in leases] == [*b[:2], *a[:3]]
    leases = one.lease(2, entries=[entry(queue="a", limit=1), entry(queue="b", limit=5)])
    assert [lease.id for lease in leases] == [a[3], b[2]], "the limit of the whole holds too"


def test_nothing_is_asked_for_nothing(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    assert one.lease(0) == []
    assert one.lease(5, entries=[]) == []
    assert one.lease(5, handlers=[]) == []


def test_jobs_that_ask_for_more_than_there_is_room_for_stay(conn: Conn, one: Holder) -> None:
    here = reach({HANDLER: Limits(), "large": Limits(memory=200), "wide": Limits(cpus=3, memory=50)}, Room(100, 2))
    assert here == Reach((HANDLER,), {"large": Limits(memory=200), "wide": Limits(cpus=3, memory=50)}, Room(100, 2))
    fitting = [
        jobs.add(conn, **columns, scheduled_at=PAST + timedelta(seconds=n))
        for n, columns in enumerate(
            (
                {},
                {"limits": '{"memory": 100, "cpus": 2}'},
                {"handler": "large", "limits": '{"memory": 100}'},
                {"handler": "wide", "limits": '{"cpus": 1}'},
                {"limits": '{"memory": "much", "timeout": []}'},  # written by hand; it is refused when it is to be run
            )
        )
    ]
    for columns in (
        {"limits": '{"memory": 101}'},
        {"limits": '{"cpus": 3}'},
        {"handler": "large"},
        {"handler": "large", "limits": '{"timeout": 5}'},
        {"handler": "large", "limits": '{"memory": null}'},
        {"handler": "wide", "limits": '{"memory": 10}'},
        {"handler": "wide", "limits": '{"cpus": 2, "memory": 101}'},
        {"handler": "nobody's", "limits": '{"memory": 1}'},
    ):
        jobs.add(conn, **columns)
    assert [lease.id for lease in one.lease(100, reach=here)] == fitting


def test_jobs_that_may_not_run_yet_or_here_stay(conn: Conn, one: Holder) -> None:
    jobs.add(conn, scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    jobs.add(conn, handler="somebody else's")
    jobs.add(conn, held_by="handler")
    jobs.add(conn, queue="elsewhere")
    assert one.lease(10) == []


def test_a_paused_queue_is_passed_over_until_it_is_opened(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2, queue="a")
    open_one = jobs.fill(conn, 1, queue="b")
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('a', now()), ('b', null)")
    entries = [entry(queue="a"), entry(queue="b")]
    assert [lease.id for lease in one.lease(10, entries=entries)] == open_one
    conn.execute("UPDATE tasuki.queue SET paused_at = null")
    assert len(one.lease(10, entries=entries)) == 2


def test_the_watermark_is_exclusive_and_by_time_then_id(conn: Conn, one: Holder) -> None:
    same_time = [jobs.add(conn, scheduled_at=PAST) for _ in range(3)]
    later = jobs.add(conn, scheduled_at=PAST + timedelta(microseconds=1))
    leases = one.lease(10, entries=[entry(after_at=PAST, after_id=same_time[1])])
    assert [lease.id for lease in leases] == [same_time[2], later]
    assert [lease.id for lease in one.lease(10, entries=[entry(after_at=None)])] == same_time[:2]


def test_the_instant_can_be_given(conn: Conn, one: Holder) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    job_id = jobs.add(conn, scheduled_at=tomorrow)
    assert one.lease(now=tomorrow - timedelta(seconds=1)) == []
    (taken,) = one.lease(now=tomorrow + timedelta(seconds=2))
    assert taken.waited == pytest.approx(2.0)
    row = jobs.live(conn, job_id)
    assert row is not None
    assert row["lease_expires_at"] == tomorrow + timedelta(seconds=62)


def test_a_row_that_an_administrator_has_locked_is_passed_over(dsn: str, conn: Conn, one: Holder) -> None:
    locked, free = jobs.fill(conn, 2)
    with psycopg.connect(dsn) as admin:
        admin.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (locked,))
        assert [lease.id for lease in one.lease(10)] == [free]
    assert [lease.id for lease in one.lease(10)] == [locked]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param('{"deep": ' + "[" * 9000 + "]" * 9000 + "}", id="deeper than any decoder goes"),
        pytest.param('{"n": ' + "9" * 5000 + "}", id="more digits than int() takes"),
        pytest.param('{"n": 1e400}', id="no float"),
        pytest.param('["not", "an", "object"]', id="no object"),
        pytest.param('{"é\\u202e": "\\u0007"}', id="odd characters"),
    ],
)
def test_a_hostile_payload_spoils_nobody_else_s_lease(conn: Conn, one: Holder, payload: str) -> None:
    jobs.fill(conn, 9)
    hostile = jobs.add(conn, payload=payload)
    leases = one.lease(10)
    assert len(leases) == 10
    assert leases[-1].id == hostile
    assert isinstance(leases[-1].payload, str)


def test_due_times_at_the_ends_of_the_calendar_are_leased(conn: Conn, one: Holder) -> None:
    early = jobs.add(conn, scheduled_at=datetime(1926, 1, 1, tzinfo=UTC))
    late = jobs.add(conn, scheduled_at=datetime(2125, 1, 1, tzinfo=UTC))
    assert one.lease_one().id == early
    (taken,) = one.lease(now=datetime(2125, 1, 2, tzinfo=UTC))
    assert taken.id == late
