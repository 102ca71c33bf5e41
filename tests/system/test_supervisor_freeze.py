"""A supervisor stands still for a while: frozen, out of time with the wall clock, or stuck in its loop."""

from __future__ import annotations

import signal
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tasuki_mp.store.upkeep import OtherSupervisor
from tasuki_mp.supervisor import identity
from tests.support import invariants, jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_for_row, wait_gone, wait_until

Conn = psycopg.Connection[Any]

SHORT = ("--lease", "2s")
"""Short enough to be waited for, long enough not to be lost on a busy machine by somebody who is not frozen."""


def freeze(supervised: Supervised, conn: Conn, job_id: int) -> None:
    """Stop it, and let its lease on this job run out. Another supervisor may have taken the job before this returns."""
    supervised.signal(signal.SIGSTOP)
    row = conn.execute("SELECT owner, lease_no FROM tasuki.job WHERE id = %s", (job_id,)).fetchone()
    assert row is not None
    wait_for_row(
        conn,
        """SELECT 1
            WHERE NOT EXISTS (SELECT FROM tasuki.job AS j
                               WHERE j.id = %(id)s AND j.lease_no = %(lease_no)s AND j.lease_expires_at >= now())
              AND NOT EXISTS (SELECT FROM tasuki.supervisor AS s
                               WHERE s.owner = %(owner)s AND s.seen_at >= now() - s.lease_seconds * interval '1 s')""",
        {"id": job_id, "owner": row[0], "lease_no": row[1]},
    )


def thaw(supervised: Supervised) -> None:
    supervised.signal(signal.SIGCONT)


def test_while_it_is_frozen_the_kernel_keeps_the_timeouts_of_its_jobs(dsn: str, conn: Conn) -> None:
    limits = Jsonb({"timeout": 3.0})
    with Door() as door, Supervised(dsn) as supervised:
        job_id = jobs.add(conn, handler="once", payload={"door": door.path}, max_attempts=1, limits=limits)
        visitor = door.visitor()
        visitor.tell("burn")
        supervised.signal(signal.SIGSTOP)

        wait_gone(visitor.pid)
        thaw(supervised)

        row = jobs.wait_final(conn, job_id)
        assert (row["status"], row["error"]["kind"], row["crashes"]) == ("failed", "timeout", 0)
        assert "its timeout is 3 s" in row["error"]["message"]
        assert supervised.stop() == 0


def test_one_that_was_frozen_beyond_its_lease_changes_nothing(dsn: str, conn: Conn) -> None:
    """The job that ran meanwhile is done by another; on waking its own run is stopped, and it works on."""
    with Door() as door, Supervised(dsn, *SHORT) as first:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        mine = door.visitor()
        with Supervised(dsn, *SHORT) as second:
            second.started()
            freeze(first, conn, job_id)
            theirs = door.visitor()
            assert (theirs.job, theirs.attempt) == (job_id, 2)
            theirs.tell("return theirs")
            row = jobs.wait_final(conn, job_id)
            assert second.stop() == 0
        # Two supervisors have taken each other for dead by now, and still nobody is wronged.
        thaw(first)
        first.event("lease lost", job=job_id, handler="hold", attempt=1, slot=0)
        mine.wait_gone()
        later = jobs.add(conn, handler="note", payload={"text": "works on"})
        assert jobs.wait_final(conn, later)["status"] == "completed"
        wait_for_row(conn, "SELECT 1 FROM tasuki.supervisor WHERE seen_at > now() - interval '1 s'")
        assert first.stop() == 0
        assert "stale" not in str(first.rest()), "the run that was stopped has nothing to say"
    assert (row["status"], row["result"]) == ("completed", "theirs")
    assert jobs.final(conn, job_id) == row
    invariants.check(conn, [job_id, later])


def test_an_outcome_that_comes_too_late_is_dropped(dsn: str, conn: Conn) -> None:
    """Frozen with the outcome in hand."""
    job_id = jobs.add(conn, handler="note", payload={"text": "x"})
    with Supervised(dsn, *SHORT, gates=["before_finish"]) as first:
        gate = first.gate()
        with Supervised(dsn, *SHORT) as second:
            second.started()
            freeze(first, conn, job_id)
            row = jobs.wait_final(conn, job_id)
            thaw(first)
            gate.remove()
            first.event("outcome came too late, dropped", job=job_id, handler="note", attempt=1, slot=0, lease_no=1)
            assert first.stop() == 0
            assert second.stop() == 0
    assert (row["status"], row["attempt"], row["lease_no"]) == ("completed", 2, 3)
    assert jobs.final(conn, job_id) == row
    invariants.check(conn, [job_id])


def test_a_lease_that_expired_before_its_job_was_dispatched_is_not_dispatched(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="note")
    with Supervised(dsn, *SHORT, gates=["after_lease_commit"]) as first:
        gate = first.gate()
        with Supervised(dsn, *SHORT) as second:
            second.started()
            freeze(first, conn, job_id)
            jobs.wait_final(conn, job_id)
            assert second.stop() == 0
        thaw(first)
        gate.remove()
        lost = first.event("lease lost", job=job_id, handler="note", attempt=1)
        assert "slot" not in lost, "it had none yet"
        later = jobs.add(conn, handler="note")
        jobs.wait_final(conn, later)
        assert first.stop() == 0
        dispatched = [event["job"] for event in first.rest() if event["event"] == "job dispatched"]
    assert dispatched == [later]
    invariants.check(conn, [job_id, later])


def test_a_lease_that_nobody_took_meanwhile_is_renewed_first(dsn: str, conn: Conn) -> None:
    """The same standstill without another supervisor: the job runs, once, but only after a heartbeat."""
    job_id = jobs.add(conn, handler="note")
    with Supervised(dsn, *SHORT, gates=["after_lease_commit"]) as supervised:
        gate = supervised.gate()
        freeze(supervised, conn, job_id)
        leased = jobs.live(conn, job_id)
        with conn.transaction():
            # Heartbeats do not get through for now: it must not be dispatched on the strength of a lease that is over.
            conn.execute("LOCK TABLE tasuki.job IN SHARE MODE")
            thaw(supervised)
            gate.remove()
            supervised.event("woke up after a standstill")
            assert jobs.live(conn, job_id) == leased
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"]) == ("completed", 1)


def test_a_loop_that_is_stuck_loses_no_lease(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="note")
    with Supervised(dsn, *SHORT, gates=["after_result"]) as supervised:
        gate = supervised.gate()
        expiry = conn.execute("SELECT lease_expires_at + interval '2 s' FROM tasuki.job").fetchone()
        # Prolonged by more than its own length while the loop stands still.
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE lease_expires_at > %s", expiry)
        gate.remove()
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"]) == ("completed", 1)


def test_the_wall_clock_of_the_host_does_not_matter(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, *SHORT, mutant="wall clock a year ahead") as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        leased = wait_until(lambda: jobs.live(conn, job_id))
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE lease_expires_at > %s", (leased["lease_expires_at"],))
        visitor.tell("return on time")
        row = jobs.wait_final(conn, job_id)
        assert int(supervised.event("job completed")["time"][:4]) == row["finished_at"].year + 1, "it did believe so"
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"]) == ("completed", 1)
    assert conn.execute(
        "SELECT finished_at BETWEEN started_at AND now() AND created_at <= started_at FROM tasuki.job_archive"
    ).fetchone() == (True,)


def test_a_process_that_has_the_pid_of_a_dead_supervisor_is_not_taken_for_it() -> None:
    me = identity.own_row(procs=1, queues=[], handlers=[], lease=60.0)
    again = identity.own_row(procs=1, queues=[], handlers=[], lease=60.0)
    assert me.owner != again.owner, "each start is somebody else, on the same host with the same pid"

    def is_gone(**changes: Any) -> bool:
        facts = {name: getattr(me, name) for name in ("owner", "host", "pid", "pid_started", "boot_id", "pid_ns")}
        return identity.is_provably_gone(OtherSupervisor(**{**facts, **changes}, is_stale=True))

    assert not is_gone()
    assert is_gone(pid_started=me.pid_started - 1), "the pid was used again"
    assert is_gone(pid=2**22 + 1), "there is no such process"
    assert not is_gone(pid=2**22 + 1, boot_id="another boot"), "who knows"
    assert not is_gone(pid=2**22 + 1, pid_ns="pid:[1]"), "who knows"
    assert not is_gone(pid=2**22 + 1, boot_id="", pid_ns=""), "an owner without a row"
