"""What the statements tell supervisors: one notification a queue, and how far back to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import schedule, store
from tasuki_mp.job import JobRow
from tasuki_mp.store import schedules, upkeep
from tests.support import jobs
from tests.support.holder import Holder, item

Conn = psycopg.Connection[tuple[Any, ...]]
Heard = Callable[[], list[str]]


@pytest.fixture
def heard(dsn: str, conn: Conn) -> Iterator[Heard]:
    """The payloads that have come over these channels since the last call."""
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN tasuki_job; LISTEN tasuki_cancel; LISTEN tasuki_schedule; LISTEN tasuki_done")

        def payloads() -> list[str]:
            conn.execute("NOTIFY tasuki_job, 'that is all'")
            seen: list[str] = []
            for notify in listener.notifies(timeout=60):
                if notify.payload == "that is all":
                    break
                seen.append(notify.payload)
            return sorted(seen)

        yield payloads


def test_an_end_and_what_waits_for_a_minute_tell_nobody(conn: Conn, one: Holder, heard: Heard) -> None:
    jobs.fill(conn, 4)
    leases = one.lease(4)
    heard()
    one.finish(
        item(leases[0], "completed"),
        item(leases[1], "failed"),
        item(leases[2], "retry", delay=3600.0),
        item(leases[3], "snooze", delay=60.0),
    )
    one.beat(*leases)
    assert heard() == []


def test_jobs_that_are_due_again_are_told_once_for_each_queue(conn: Conn, one: Holder, heard: Heard) -> None:
    for queue in ("a", "b", "c"):
        jobs.fill(conn, 3, queue=queue)
    leases = one.lease(9, entries=[store.LeaseEntry(queue=queue, priority=2, limit=9) for queue in "abc"])
    by_queue = {queue: [lease for lease in leases if lease.queue == queue] for queue in "abc"}
    one.finish(
        item(by_queue["a"][0], "retry"),
        *(item(lease, "retry", delay=0.5) for lease in by_queue["a"][1:]),
        *(item(lease, "snooze") for lease in by_queue["b"]),
        *(item(lease, "snooze", delay=59.0) for lease in by_queue["c"]),
    )
    assert heard() == ["a 0", "a ahead", "b 0", "c ahead"]


def test_a_release_says_how_far_back_its_job_was_due(conn: Conn, one: Holder, heard: Heard) -> None:
    for minutes in (5, 10):
        jobs.add(conn, scheduled_at=datetime.now(UTC) - timedelta(minutes=minutes))
    leases = one.lease(2)
    one.finish(*(item(lease, "release") for lease in leases))
    (hint,) = heard()
    queue, milliseconds = hint.split(" ")
    assert queue == "default"
    assert 600_000 <= int(milliseconds) < 660_000


def test_a_lost_lease_reply_and_a_rescue_are_told(conn: Conn, one: Holder, two: Holder, heard: Heard) -> None:
    jobs.add(conn, scheduled_at=datetime.now(UTC) - timedelta(hours=1))
    jobs.add(conn, scheduled_at=datetime.now(UTC) - timedelta(hours=1))
    one.lease(2)
    one.release_unknown()
    (hint,) = heard()
    assert 3_600_000 <= int(hint.split(" ")[1]) < 3_660_000
    one.lease(2)
    two.rescue(one.owner, is_gone=True)
    assert heard() == ["default 1000"]


def test_jobs_whose_handler_has_come_are_told(conn: Conn, one: Holder, heard: Heard) -> None:
    jobs.add(conn, held_by="handler", scheduled_at=datetime.now(UTC) - timedelta(minutes=1))
    assert one.call(store.release_held, handlers=["work"]) == 1
    (hint,) = heard()
    assert 60_000 <= int(hint.split(" ")[1]) < 120_000


def test_it_can_be_switched_off(conn: Conn, one: Holder, two: Holder, heard: Heard) -> None:
    jobs.fill(conn, 3)
    released, unknown, lost = one.lease(3)
    one.call(store.finish, owner=one.owner, items=[item(released, "release")], notify=False)
    one.call(store.release_unknown, owner=one.owner, known=[lost.id], notify=False)
    two.call(store.rescue, owners=[one.owner], is_gone=True, limit=5, notify=False)
    assert [jobs.status(conn, lease.id) for lease in (released, unknown, lost)] == ["pending"] * 3
    assert heard() == []


def test_so_can_those_of_handlers_keys_schedules_and_of_jobs_that_are_waited_for(
    conn: Conn, one: Holder, heard: Heard
) -> None:
    """Whoever waits for a job's end looks now and then as well."""
    jobs.fill(conn, 1)
    lease = one.lease_one()
    conn.execute("INSERT INTO tasuki.waiter (job_id) VALUES (%s)", (lease.id,))
    jobs.add(conn, held_by="handler")
    jobs.add(conn, held_by="key", key="k")
    often = schedule.info("often", "every 1m", JobRow(queue="default", handler="work", payload="{}"))
    assert one.call(store.finish, owner=one.owner, items=[item(lease, "completed")], notify=False)
    assert one.call(store.release_held, handlers=["work"], notify=False) == 1
    assert one.call(upkeep.release_keys, notify=False) == 1
    one.call(schedules.register, infos=[often], version="1", notify=False)
    now = datetime(2030, 1, 1, 0, 1, 10, tzinfo=UTC)
    conn.execute("UPDATE tasuki.schedule SET decided_until = %s", (now - timedelta(seconds=60),))
    fired = one.call(schedules.fire, owner=one.owner, names=["often"], now=now, notify=False)
    assert [tick.verdict for tick in fired.ticks] == ["fired"]
    assert heard() == []


def test_a_cancel_request_tells_the_owner(conn: Conn, one: Holder, heard: Heard) -> None:
    jobs.fill(conn, 1)
    jobs.cancel(conn, one.lease_one().id)
    assert heard() == [str(one.owner)]
