"""Follow-up jobs: inserted with the completion that they belong to, once, or never."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest

from tests.support import following as app
from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_until

APP = "tests.support.following:app"
Conn = psycopg.Connection[tuple[Any, ...]]


def leaves(conn: Conn) -> list[int]:
    """The numbers of all leaves there are, live or done, in order of their ids."""
    rows = conn.execute(
        """SELECT (payload ->> 'number')::int FROM (
             SELECT id, payload FROM tasuki.job WHERE handler = 'leaf'
             UNION ALL SELECT id, payload FROM tasuki.job_archive WHERE handler = 'leaf') AS l ORDER BY id"""
    )
    return [number for (number,) in rows]


@pytest.mark.parametrize(
    ("end", "status", "expected"),
    [
        ("return", "completed", [0, 1, 2]),
        ("snooze", "completed", [0, 1, 2]),
        ("retry", "completed", []),
        ("raise", "completed", []),
        ("die", "completed", []),
        ("cancel", "canceled", []),
    ],
)
@pytest.mark.parametrize("factor", [1, 1000])
def test_they_come_with_a_value_or_a_snooze_and_with_nothing_else(
    conn: Conn, dsn: str, end: str, status: str, expected: list[int], factor: int
) -> None:
    count = 3 * factor  # few travel with the outcome, many in a file
    job = app.app.enqueue(app.ask.job(count, end), conn).id
    with Supervised(dsn, "--queue", "default", app=APP):
        assert jobs.wait_final(conn, job)["status"] == status
    assert leaves(conn) == list(range(len(expected) * factor))


def test_they_are_what_the_handler_asked_for(conn: Conn, dsn: str) -> None:
    job = app.app.enqueue(app.delayed.job(), conn).id
    with Supervised(dsn, "--queue", "default", app=APP):
        jobs.wait_final(conn, job)
    rows = conn.execute(
        """SELECT queue, priority, key, limits ->> 'cpus', scheduled_at > now() + interval '50 minutes'
           FROM tasuki.job ORDER BY id"""
    ).fetchall()
    assert rows == [("leaves", 0, "tenant", None, True), ("leaves", 3, None, "3", False)]


def test_jobs_that_a_handler_yields_follow_and_run(conn: Conn, dsn: str) -> None:
    spread = app.app.enqueue(app.spread.job(1500, size=2000), conn).id
    drip = app.app.enqueue(app.drip.job(3), conn).id
    stumble = app.app.enqueue(app.stumble.job(), conn).id
    with Supervised(dsn, "--drain", app=APP) as supervised:
        assert supervised.wait() == 0
    assert jobs.wait_final(conn, spread)["result"] == {"enqueued": 1500}
    assert jobs.wait_final(conn, drip)["result"] == {"enqueued": 3}
    assert "is no Job" in jobs.wait_final(conn, stumble)["error"]["message"]
    assert sorted(leaves(conn)) == sorted([*range(1500), *range(3)])
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)


def test_of_5000_jobs_none_is_inserted_when_their_generator_dies_in_the_middle(conn: Conn, dsn: str) -> None:
    with Door() as door, Supervised(dsn, "--queue", "default", app=APP, procs=1):
        job = app.app.enqueue(app.spread.job(5000, door=door.path), conn).id
        visitor = door.visitor()
        visitor.signal(signal.SIGKILL)
        visitor.wait_gone()
        wait_until(lambda: jobs.history(conn, job), "the crash on record")
        assert leaves(conn) == []
        conn.execute("UPDATE tasuki.job SET scheduled_at = now() WHERE id = %s", (job,))
        second = door.visitor()
        assert second.pid != visitor.pid
        second.tell("return")
        assert jobs.wait_final(conn, job)["attempt"] == 2
    assert leaves(conn) == list(range(5000))


@pytest.mark.parametrize("count", [10, 5000])
@pytest.mark.parametrize("point", ["before_finish", "after_finish_sent"])
def test_they_are_there_once_whenever_the_supervisor_dies(conn: Conn, dsn: str, point: str, count: int) -> None:
    job = app.app.enqueue(app.spread.job(count), conn).id
    options = ("--queue", "default", "--lease", "2s")
    with Supervised(dsn, *options, app=APP, gates=[point]) as first:
        first.gate()
        first.kill()
    assert len(leaves(conn)) == (0 if point == "before_finish" else count)
    with Supervised(dsn, *options, "--drain", app=APP) as second:
        assert second.wait() == 0
    assert jobs.wait_final(conn, job)["status"] == "completed"
    assert leaves(conn) == list(range(count))


def test_a_lost_lease_drops_them(conn: Conn, dsn: str) -> None:
    job = app.app.enqueue(app.spread.job(5000), conn).id
    with Supervised(dsn, "--queue", "default", app=APP, gates=["before_finish"]) as supervised:
        gate = supervised.gate()
        conn.execute(
            """UPDATE tasuki.job SET status = 'pending', owner = NULL, lease_expires_at = NULL, started_at = NULL,
               pid = NULL, slot = NULL, lease_no = lease_no + 1, scheduled_at = now() + interval '1 hour' WHERE id = %s""",
            (job,),
        )
        gate.remove()
        supervised.event("outcome came too late, dropped", job=job, handler="spread", attempt=1, slot=0, lease_no=1)
        assert leaves(conn) == []


def test_a_job_may_enqueue_its_own_unique_key_again(conn: Conn, dsn: str) -> None:
    first = app.app.enqueue(app.chain.job(3).unique("chain"), conn).id
    with Supervised(dsn, "--drain", app=APP) as supervised:
        assert supervised.wait() == 0
    rows = conn.execute("SELECT payload ->> 'left', status FROM tasuki.job_archive ORDER BY id").fetchall()
    assert rows == [(str(left), "completed") for left in (3, 2, 1, 0)]
    assert jobs.wait_final(conn, first)["unique_key"] == "chain:chain"


def test_a_unique_key_that_is_taken_fails_the_job_that_asked_to_hear_of_it(conn: Conn, dsn: str) -> None:
    standing = app.app.enqueue(app.leaf.job(9).unique("taken"), conn).id
    job = app.app.enqueue(app.insist.job(), conn).id
    with Supervised(dsn, "--queue", "default", app=APP):
        row = jobs.wait_final(conn, job)
    assert (row["status"], row["error"]["type"]) == ("failed", "ConflictError")
    assert str(standing) in row["error"]["message"]
    assert leaves(conn) == [9]


@pytest.mark.parametrize(
    ("how", "kind"), [("error", "error RuntimeError"), ("die", "crash ChildDied"), ("visit", "lost Lost")]
)
def test_another_handler_is_told_of_a_final_failure(conn: Conn, dsn: str, how: str, kind: str) -> None:
    with Door() as door:
        job = app.app.enqueue(app.fragile.job(how, door=door.path), conn).id
        with Supervised(dsn, "--lease", "2s", app=APP, leaves_behind=True) as first:
            if how == "visit":  # its supervisor dies, and another finds the job
                door.visitor()
                first.kill()
            else:
                jobs.wait_final(conn, job)
                first.stop()
        with Supervised(dsn, "--lease", "2s", "--drain", app=APP) as second:
            assert second.wait() == 0
    row = conn.execute("SELECT status, result #>> '{}' FROM tasuki.job_archive WHERE handler = 'alarm'").fetchall()
    assert row == [("completed", f"{job} fragile {kind}")]
