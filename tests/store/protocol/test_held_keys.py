"""Jobs that are held for their key: whatever becomes of the one that was let go, the next one follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, store
from tasuki_mp.job import Job, JobRow
from tasuki_mp.limits import Reach
from tasuki_mp.store import change, doctor, upkeep
from tasuki_mp.store.steps import drive
from tests.support import jobs
from tests.support.holder import HANDLER, LEASE_FOR, QUEUE, Holder

Conn = psycopg.Connection[tuple[Any, ...]]


def _limit(conn: Conn, per_key: int | None = 1) -> None:
    conn.execute("SELECT tasuki.limit_queue(%s, null, %s)", [QUEUE, per_key])


def _lease(holder: Holder, limit: int = 10) -> list[int]:
    leases = holder.call(
        store.lease_limited,
        owner=holder.owner,
        lease_for=LEASE_FOR,
        queue=QUEUE,
        reach=Reach((HANDLER,)),
        limit=limit,
        sent_at=0.0,
    )
    return [lease.id for lease in leases]


def _held(conn: Conn) -> list[int]:
    return [id for (id,) in conn.execute("SELECT id FROM tasuki.job WHERE held_by = 'key' ORDER BY id")]


def _one_let_go(conn: Conn, holder: Holder, count: int = 4) -> list[int]:
    """Jobs of one key: the first has ended, the second may be leased, the others are held."""
    _limit(conn)
    ids = [jobs.add(conn, key="k") for _ in range(count)]
    leases = holder.call(
        store.lease_limited,
        owner=holder.owner,
        lease_for=LEASE_FOR,
        queue=QUEUE,
        reach=Reach((HANDLER,)),
        limit=10,
        sent_at=0.0,
    )
    assert [lease.id for lease in leases] == ids[:1]
    holder.end(leases[0], "completed")
    assert _held(conn) == ids[2:]
    return ids


def _cancel_by_hand(client: Client, id: int) -> None:
    with client.connection(None) as conn:
        drive(conn, change.change(change.CANCEL, [id]))


def _hold(client: Client, id: int) -> None:
    with client.connection(None) as conn:
        conn.execute("UPDATE tasuki.job SET held_by = 'handler' WHERE id = %s", [id])


def _replace(client: Client, id: int) -> None:
    job = Job(JobRow(handler=HANDLER, payload="{}")).unique("u")
    with client.connection(None) as conn:
        conn.execute("INSERT INTO tasuki.unique_key (key, job_id) VALUES (%s, %s)", [f"{HANDLER}:u", id])
    later = job.after(hours=1).key("k").unique("u", on_conflict="replace")
    assert client.enqueue(later).id == id


@pytest.mark.parametrize(
    "goes",
    [
        pytest.param(lambda client, id: client.cancel([id]), id="cancel"),
        pytest.param(_cancel_by_hand, id="cancel by the hand on the queue"),
        pytest.param(lambda client, id: client.delete([id]), id="delete"),
        pytest.param(lambda client, id: client.move([id], to="elsewhere"), id="move"),
        pytest.param(lambda client, id: client.reschedule([id], after=3600.0), id="reschedule"),
        pytest.param(_replace, id="replace"),
        pytest.param(_hold, id="hold for its handler"),
    ],
)
def test_when_the_one_that_was_let_go_goes_elsewhere_the_next_one_follows(
    dsn: str, conn: Conn, one: Holder, goes: Callable[[Client, int], object]
) -> None:
    ids = _one_let_go(conn, one)
    with Client(dsn) as client:
        goes(client, ids[1])
    assert _held(conn) == ids[3:]
    assert _lease(one) == [ids[2]]


def test_a_held_job_that_is_put_off_does_not_stand_before_those_that_are_due(dsn: str, conn: Conn, one: Holder) -> None:
    ids = _one_let_go(conn, one)
    with Client(dsn) as client:
        client.reschedule([ids[2]], after=3600.0)
    assert _held(conn) == ids[3:]
    jobs.cancel(conn, ids[1])
    assert _lease(one) == ids[3:]


def test_where_as_many_run_as_may_none_is_let_go(conn: Conn, one: Holder) -> None:
    _limit(conn)
    ids = [jobs.add(conn, key="k") for _ in range(3)]
    assert _lease(one) == ids[:1]
    extra = jobs.add(conn, key="k")
    jobs.cancel(conn, extra)
    assert _held(conn) == ids[1:]


def test_a_sweep_lets_go_of_the_first_of_each_key_that_has_room(conn: Conn, one: Holder) -> None:
    _limit(conn)
    ids = {key: [jobs.add(conn, key=key) for _ in range(3)] for key in "abcd"}
    assert len(_lease(one)) == 4
    conn.execute("ALTER TABLE tasuki.job DISABLE TRIGGER USER")
    try:
        conn.execute("DELETE FROM tasuki.job WHERE id = any(%s)", [[ids["b"][0], ids["d"][0]]])
    finally:
        conn.execute("ALTER TABLE tasuki.job ENABLE TRIGGER USER")
    assert _lease(one) == []
    conn.execute("UPDATE tasuki.queue SET paused_at = now()")
    assert one.call(upkeep.release_keys) == 0
    conn.execute("UPDATE tasuki.queue SET paused_at = null")
    assert one.call(upkeep.release_keys, limit=2) == 2
    assert _lease(one) == [ids["b"][1], ids["d"][1]]
    assert one.call(upkeep.release_keys, limit=2) == 0


def test_what_is_held_in_a_queue_without_a_limit_is_let_go_by_the_sweep(conn: Conn, one: Holder) -> None:
    ids = [jobs.add(conn, key="k", held_by="key") for _ in range(3)]
    assert one.call(upkeep.release_keys) == 3
    assert sorted(lease.id for lease in one.lease(5)) == ids


def test_the_doctor_names_keys_whose_jobs_nobody_lets_go(conn: Conn, one: Holder) -> None:
    ids = _one_let_go(conn, one)
    assert "keys" not in {finding.topic for finding in doctor.examine(conn)}
    conn.execute("UPDATE tasuki.job SET held_by = 'key' WHERE id = %s", [ids[1]])
    (finding,) = (finding for finding in doctor.examine(conn) if finding.topic == "keys")
    assert finding.severity == "warning"
    assert finding.what == f"3 jobs are held for a key of which fewer run than may; one of them is {ids[1]}"
