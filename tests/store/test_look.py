"""What `status`, `show` and the queue metrics read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tasuki_mp.store import look
from tasuki_mp.store.connect import connect
from tasuki_mp.store.look import DepthProbe, Depths
from tests.support import jobs

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def looking(dsn: str) -> Iterator[Connection]:
    with connect(dsn, name="test") as connection:
        yield connection


def add_supervisor(conn: Connection, *, handlers: list[str], silent_for: float = 0, host: str = "here") -> UUID:
    owner = uuid4()
    conn.execute(
        """INSERT INTO tasuki.supervisor
             (owner, host, pid, pid_started, boot_id, pid_ns, version, procs, queues, handlers, lease_seconds, seen_at)
           VALUES (%s, %s, 7, 1, '', '', '0', 2, '{a}', %s, 60, now() - %s * interval '1 second')""",
        (owner, host, handlers, silent_for),
    )
    return owner


def add_running(conn: Connection, owner: UUID, **columns: Any) -> int:
    return jobs.add(conn, status="running", owner=owner, lease_expires_at="2199-01-01", attempt=1, **columns)


def add_final(conn: Connection, job_id: int, status: str = "completed", **columns: Any) -> None:
    values = {"error": None, "result": None, "usage": None, "output": None, **columns}
    conn.execute(
        """INSERT INTO tasuki.job_archive
             (id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, result, error, usage, output,
              created_at, scheduled_at, finished_at, lease_no)
           VALUES (%(id)s, 'h', 'a', %(status)s, '{"n": 1}', 2, 5, 0, 2, %(result)s, %(error)s, %(usage)s, %(output)s,
              now(), now(), now(), 3)""",
        {"id": job_id, "status": status, **values},
    )


def test_an_empty_database(looking: Connection) -> None:
    now = look.status(looking)
    assert (now.queues, now.final, now.running, now.running_total) == ([], [], [], 0)
    assert (now.supervisors, now.unknown_handlers) == ([], {})


def test_live_jobs_are_counted_by_queue_and_kind(conn: Connection, looking: Connection) -> None:
    owner = add_supervisor(conn, handlers=["h"])
    jobs.add(conn, queue="a", handler="h", scheduled_at="2020-01-01")
    jobs.add(conn, queue="a", handler="h")
    jobs.add(conn, queue="a", handler="h", scheduled_at="2199-01-01")
    jobs.add(conn, queue="a", handler="gone", held_by="handler")
    add_running(conn, owner, queue="a", handler="h")
    jobs.add(conn, queue="b", handler="h")
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('b', now()), ('c', now()), ('open', NULL)")
    depths = {depth.queue: depth for depth in look.status(looking).queues}
    assert list(depths) == ["a", "b", "c"]
    a = depths["a"]
    assert (a.due, a.scheduled, a.held, a.running, a.paused_at) == (2, 1, 1, 1, None)
    assert a.oldest_due > 180 * 86_400
    assert depths["b"].due == 1
    assert depths["b"].paused_at is not None
    assert (depths["c"].due, depths["c"].paused_at is not None) == (0, True)


def test_the_instant_can_be_told(conn: Connection, looking: Connection) -> None:
    jobs.add(conn, queue="a", handler="h", scheduled_at="2100-01-01 00:00+00")
    [depth] = look.queue_depths(looking, now=datetime.fromisoformat("2100-01-01T00:01+00:00"))
    assert (depth.due, depth.scheduled, depth.oldest_due) == (1, 0, 60)


def test_finished_jobs_are_counted_from_the_archive(conn: Connection, looking: Connection) -> None:
    for number, status in enumerate(["completed", "completed", "failed", "canceled"]):
        add_final(conn, number, status)
    counts = {(count.queue, count.status): count.jobs for count in look.status(looking).final or ()}
    assert counts == {("a", "completed"): 2, ("a", "failed"): 1, ("a", "canceled"): 1}


def test_an_archive_that_takes_too_long_is_not_counted(conn: Connection, looking: Connection) -> None:
    jobs.add(conn, queue="a", handler="h")
    with conn.transaction():
        # Its statement can't even begin, as if it were still at work when its time is over.
        conn.execute("LOCK TABLE tasuki.job_archive IN ACCESS EXCLUSIVE MODE")
        now = look.status(looking, final_timeout=0.05)
    assert now.final is None
    assert [depth.due for depth in now.queues] == [1]
    assert look.status(looking).final == []


def test_running_jobs_have_their_place(conn: Connection, looking: Connection) -> None:
    owner = add_supervisor(conn, handlers=["h"], host="worker-1")
    old = add_running(conn, owner, queue="a", handler="h", started_at="2020-01-01", pid=4711, slot=3)
    new = add_running(conn, uuid4(), queue="a", handler="h", cancel_requested_at="2020-01-01")
    jobs.expire(conn, new)
    now = look.status(looking)
    assert now.running_total == 2
    first, second = now.running
    assert (first.id, first.host, first.pid, first.slot, first.is_expired) == (old, "worker-1", 4711, 3, False)
    assert first.age is not None
    assert first.age > 180 * 86_400
    assert (second.id, second.host, second.pid, second.age) == (new, None, None, None)
    assert (second.is_expired, second.is_cancel_requested) == (True, True)
    assert [job.id for job in look.status(looking, running_limit=1).running] == [old]
    assert look.status(looking, running_limit=1).running_total == 2


def test_handlers_that_no_living_supervisor_knows(conn: Connection, looking: Connection) -> None:
    add_supervisor(conn, handlers=["known"])
    add_supervisor(conn, handlers=["of the dead"], silent_for=3600)
    for handler in ("known", "of the dead", "nobody's", "nobody's"):
        jobs.add(conn, queue="a", handler=handler)
    now = look.status(looking)
    assert now.unknown_handlers == {"nobody's": 2, "of the dead": 1}
    assert [supervisor.is_stale for supervisor in now.supervisors] == [False, True]


def test_a_live_job(conn: Connection, looking: Connection) -> None:
    owner = add_supervisor(conn, handlers=["h"], host="worker-1")
    job_id = add_running(conn, owner, queue="a", handler="h", payload={"n": 1}, pid=4711, slot=3)
    found = look.job(looking, job_id)
    assert found is not None
    job, attempts = found
    assert (job.id, job.state, job.payload, job.host, job.pid, job.slot) == (
        job_id,
        "running",
        '{"n": 1}',
        "worker-1",
        4711,
        3,
    )
    assert attempts == []


def test_a_finished_job_and_its_attempts(conn: Connection, looking: Connection) -> None:
    add_final(conn, 9, "failed", error='{"kind": "error"}', usage='{"pid": 1}', output="said")
    for lease_no, kind in ((2, "rescue"), (1, "retry")):
        conn.execute(
            """INSERT INTO tasuki.attempt (job_id, lease_no, owner, attempt, kind, error, ended_at)
               VALUES (9, %s, gen_random_uuid(), %s, %s, '{"kind": "crash"}', now())""",
            (lease_no, lease_no, kind),
        )
    found = look.job(looking, 9)
    assert found is not None
    job, attempts = found
    assert (job.state, job.error, job.usage, job.output) == ("failed", '{"kind": "error"}', '{"pid": 1}', "said")
    assert job.finished_at is not None
    assert [(attempt.attempt, attempt.kind, attempt.error) for attempt in attempts] == [
        (1, "retry", '{"kind": "crash"}'),
        (2, "rescue", '{"kind": "crash"}'),
    ]


def test_no_job(looking: Connection) -> None:
    assert look.job(looking, 2**40) is None


def test_looking_changes_nothing_and_leaves_no_setting(looking: Connection) -> None:
    before = looking.execute("SHOW enable_seqscan").fetchone()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), look.snapshot(looking):
        looking.execute("INSERT INTO tasuki.job (handler) VALUES ('h')")
    look.status(looking)
    assert looking.execute("SHOW enable_seqscan").fetchone() == before
    assert looking.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_probe_asks_anew_only_after_a_while(conn: Connection, dsn: str) -> None:
    patient, eager = DepthProbe(dsn, every=3600), DepthProbe(dsn, every=0)
    empty = Depths(queues=[], unknown_jobs=0, unknown_oldest_due=0.0, notification_usage=0.0)
    assert (patient(), eager()) == (empty, empty)
    jobs.add(conn, queue="a", handler="h")
    assert patient() == empty
    found = eager()
    assert found is not None
    assert [depth.due for depth in found.queues] == [1]
    patient.close()
    eager.close()
    eager.close()


def test_a_probe_finds_jobs_of_handlers_that_nobody_knows(conn: Connection, dsn: str) -> None:
    add_supervisor(conn, handlers=["a"])
    jobs.add(conn, handler="a")
    jobs.add(conn, handler="nobody_s", scheduled_at=datetime.now(UTC) - timedelta(minutes=5))
    jobs.add(conn, handler="nobody_s")
    jobs.add(conn, handler="a_later_one", scheduled_at=datetime.now(UTC) + timedelta(days=1))
    probe = DepthProbe(dsn)
    found = probe()
    probe.close()
    assert found is not None
    assert found.unknown_jobs == 3
    assert 299 < found.unknown_oldest_due < 400


def test_a_probe_comes_back_after_a_lost_connection(conn: Connection, dsn: str) -> None:
    probe = DepthProbe(dsn, every=0)
    assert probe() is not None
    conn.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'tasuki-mp metrics'"
        " AND datname = current_database()"
    )
    assert probe() is None
    assert probe() is not None
    probe.close()


def test_a_probe_without_a_database_has_no_figures() -> None:
    assert DepthProbe("postgresql://nobody@127.0.0.1:1/nothing")() is None
