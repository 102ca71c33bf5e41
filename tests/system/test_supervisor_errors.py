"""Errors in the supervisor itself, which nobody foresaw: it ends in an orderly way and says why, and the next goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import ExitCode
from tests.support import invariants, jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_for_row, wait_until

Conn = psycopg.Connection[Any]


@pytest.mark.parametrize(
    "point", ["child_hello", "after_lease_commit", "before_heartbeat", "before_finish", "after_result"]
)
def test_a_part_that_fails_ends_the_whole_and_not_in_silence(dsn: str, conn: Conn, point: str) -> None:
    job_id = jobs.add(conn, handler="note")
    with Supervised(dsn, gates=[point]) as supervised:
        supervised.gate().break_down()
        assert "the test says so" in supervised.event("stopping after an unexpected error")["error"]
        assert supervised.wait() in {ExitCode.FAILED, ExitCode.FORCED}
        supervised.rest()
        assert "RuntimeError: the test says so" in "\n".join(supervised.log), "the traceback"
    # The heartbeat has a thread of its own: until it breaks, the others go on.
    left = {"pending", "running", "completed"} if point == "before_heartbeat" else {"pending", "running"}
    assert jobs.status(conn, job_id) in left, "the next supervisor goes on with it"
    invariants.check(conn, [job_id], at_rest=False)


AT_ONCE = '{"timeout": 0.001}'


@pytest.mark.parametrize(
    ("broken", "limits", "order"),
    [
        ("Nursery.bury", None, "exit 3"),
        ("Attic.clear_after", None, "exit 3"),
        ("Slot.stop_job", AT_ONCE, ""),
        ("Slot.stack", AT_ONCE, ""),
    ],
)
def test_what_goes_wrong_on_the_way_of_one_job_ends_the_whole(
    dsn: str, conn: Conn, broken: str, limits: str | None, order: str
) -> None:
    with Door() as door:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path}, limits=limits)
        with Supervised(dsn, "--grace", "0s", mutant=broken) as supervised:
            if order:
                door.visitor().tell(order)
            assert "the test says so" in supervised.event("stopping after an unexpected error")["error"]
            assert supervised.wait() == ExitCode.FAILED
            supervised.rest()
            assert "RuntimeError: the test says so" in "\n".join(supervised.log), "the traceback"
        status = jobs.status(conn, job_id)
        assert status == ("running" if broken == "Nursery.bury" else "pending")
        invariants.check(conn, [job_id], at_rest=False)
        if status == "running":
            jobs.expire(conn, job_id)
            with Supervised(dsn, "--lease", "1s") as supervised:
                visitor = door.visitor()
                assert visitor.attempt == 2
                visitor.tell("return")
                jobs.wait_final(conn, job_id)
                assert supervised.stop() == 0


def test_a_child_that_no_kill_reaches_does_not_keep_a_supervisor_that_has_failed(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--grace", "0s", mutant="no kill works") as supervised:
        job_id = jobs.add(conn, handler="fenced", payload={"door": door.path})
        visitor = door.visitor()
        jobs.cancel(conn, job_id)
        supervised.event("stopping after an unexpected error")
        assert supervised.wait() == ExitCode.FAILED
        visitor.wait_gone()
        assert "stopping after an unexpected error" not in [event["event"] for event in supervised.rest()], "said once"
        assert jobs.status(conn, job_id) == "running", "until its lease has expired"


def test_what_no_slot_can_take_is_not_leased_over_and_over(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--lease", "1s", "--poll", "50ms") as supervised:
        supervised.started()
        jobs.wait_final(conn, jobs.add(conn, handler="note"))  # jobs are quick, it learns
        hold = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        ids = [jobs.add(conn, handler="note") for _ in range(20)]
        held = wait_until(lambda: jobs.live(conn, hold))
        # For as long as three leases; whatever was leased beside the long job has been given back long since.
        wait_for_row(
            conn,
            "SELECT 1 FROM tasuki.job WHERE id = %s AND lease_expires_at > %s::timestamptz + interval '2 s'",
            (hold, held["lease_expires_at"]),
        )
        assert conn.execute("SELECT max(lease_no) FROM tasuki.job WHERE id = any(%s)", (ids,)).fetchone() in {
            (0,),
            (1,),
        }
        visitor.tell("return")
        for job_id in ids:
            assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert supervised.stop() == 0


APP_WITH_A_NUL = """
import os, signal, sys
from tasuki_mp import Tasuki
app = Tasuki()

@app.handler
def crash() -> None:
    os.write(2, b"Fatal Python error: with a NUL \\0 and no UTF-8 \\xff\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_report_may_hold_anything(dsn: str, conn: Conn, tmp_path: Path) -> None:
    tmp_path.joinpath("nul.py").write_text(APP_WITH_A_NUL, encoding="utf-8")
    with Supervised(dsn, "--app-dir", str(tmp_path), app="nul:app") as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="crash")
        history = wait_until(lambda: jobs.history(conn, job_id))
        assert supervised.stop() == 0
    error = history[0]["error"]
    assert (history[0]["kind"], error["kind"], error["signal"]) == ("retry", "crash", "SIGKILL")
    assert "with a NUL \\u0000 and no UTF-8 \\xff" in error["traceback"]
