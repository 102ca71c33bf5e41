"""A standby takes over that lacks the last commits: jobs that run here are pending there, and are leased again."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support import invariants, jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_for_row, wait_gone

Conn = psycopg.Connection[Any]

OPTIONS = ("--lease", "10m", "--poll", "10m")
"""Whoever notices what became of a lease, it is not the heartbeat; and jobs are leased when a test says so."""


def fail_over(conn: Conn, job_id: int, *, lease_no: int) -> int:
    """Let the job be pending under that number, as if its later leases had never been; and say that it is due.

    Returns the slot that it runs in.
    """
    # Once the row says where the job runs, no heartbeat is due before long.
    (slot,) = wait_for_row(conn, "SELECT slot FROM tasuki.job WHERE id = %s AND pid IS NOT NULL", (job_id,))
    with conn.transaction():
        conn.execute(
            """UPDATE tasuki.job
                  SET status = 'pending', owner = NULL, lease_expires_at = NULL, started_at = NULL, pid = NULL,
                      slot = NULL, attempt = 0, lease_no = %s
                WHERE id = %s""",
            (lease_no, job_id),
        )
        conn.execute("SELECT pg_notify('tasuki_job', 'default 1000')")
    return int(slot)


def test_the_older_run_of_a_job_that_is_leased_again_is_stopped_before_the_newer_begins(dsn: str, conn: Conn) -> None:
    """Under another number: somebody else had it meanwhile."""
    with Door() as door, Supervised(dsn, *OPTIONS, procs=2) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        older = door.visitor()
        slot = fail_over(conn, job_id, lease_no=2)
        held = "job leased again while held, older run is stopped"
        supervised.event(held, job=job_id, handler="hold", attempt=1, slot=slot)
        newer = door.visitor()
        assert (newer.job, newer.lease_no, newer.attempt) == (job_id, 3, 1)
        wait_gone(older.pid, timeout=0)
        newer.tell("return the newer")
        row = jobs.wait_final(conn, job_id)
        assert (row["status"], row["result"], row["lease_no"], row["attempt"]) == ("completed", "the newer", 3, 1)
        assert supervised.stop() == 0
    invariants.check(conn, [job_id])


def test_the_run_of_a_job_that_is_leased_again_under_its_number_goes_on(dsn: str, conn: Conn) -> None:
    """The standby knows nothing of its lease and gives out the same: that is what it runs under."""
    with Door() as door, Supervised(dsn, *OPTIONS, procs=2) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        fail_over(conn, job_id, lease_no=0)
        supervised.event("job leased again under the same number, its run goes on", job=job_id)
        other = jobs.add(conn, handler="note")
        assert jobs.wait_final(conn, other)["attempt"] == 1
        visitor.tell("print still here")
        assert door.is_quiet()
        visitor.tell("return the only")
        row = jobs.wait_final(conn, job_id)
        assert (row["status"], row["result"], row["lease_no"], row["attempt"]) == ("completed", "the only", 1, 1)
        assert supervised.stop() == 0
    invariants.check(conn, [job_id, other])
