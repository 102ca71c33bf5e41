"""Stopping in stages: what runs may end, what has not started goes back, a second signal stops it, a third leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import ExitCode
from tasuki_mp.supervisor.supervisor import FLUSH_FOR
from tests.support import invariants, jobs, leaks
from tests.support.door import Door
from tests.support.hooked import IN_A_TERMINAL, Supervised
from tests.support.waiting import wait_for_lock_wait, wait_gone, wait_until

Conn = psycopg.Connection[Any]


def hold(conn: Conn, door: Door, **columns: Any) -> int:
    return jobs.add(conn, **{"handler": "hold", "payload": {"door": door.path}, **columns})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_at_the_first_signal_what_runs_may_end_and_the_rest_goes_back(
    dsn: str, conn: Conn, number: signal.Signals
) -> None:
    with Door() as door, Supervised(dsn, "--poll", "50ms") as supervised:
        supervised.started()
        # Once it knows that jobs are quick, it leases more than it can run at once.
        jobs.wait_final(conn, jobs.add(conn, handler="note"))
        with conn.transaction():
            running = hold(conn, door, priority=0)
            waiting = [jobs.add(conn, handler="note") for _ in range(5)]
        visitor = door.visitor()
        wait_until(lambda: not jobs.history(conn, waiting[0]) and jobs.status(conn, waiting[0]) == "running")
        supervised.signal(number)
        assert supervised.event("stopping")["signal"] == number.name
        for job_id in waiting:
            row = wait_until(lambda job_id=job_id: pending(conn, job_id), f"job {job_id} given back")
            assert (row["attempt"], jobs.history(conn, job_id)[0]["kind"]) == (0, "release")
        visitor.tell("return after all")
        assert supervised.wait() == ExitCode.OK
        assert supervised.rest()[-1]["event"] == "stopped"
    row = jobs.wait_final(conn, running)
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "after all")
    invariants.check(conn, [running, *waiting])


def test_what_runs_is_told_that_its_supervisor_stops(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, procs=2) as supervised:
        running = [hold(conn, door) for _ in range(2)]
        for visitor in [door.visitor() for _ in running]:
            visitor.tell("watch")
        assert supervised.stop() == ExitCode.OK
    assert [jobs.wait_final(conn, job_id)["result"] for job_id in running] == ["shutdown", "shutdown"]


def test_a_job_that_it_waits_for_can_be_canceled(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--grace", "1h") as supervised:
        job_id = hold(conn, door)
        door.visitor()
        supervised.signal(signal.SIGTERM)
        supervised.event("stopping")
        assert jobs.cancel(conn, job_id) == "requested"
        assert supervised.wait() == ExitCode.OK
    assert jobs.wait_final(conn, job_id)["status"] == "canceled"


def test_a_job_that_raises_since_it_should_stop_is_given_back(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="go_on", payload={"how": "watch"})
    with Supervised(dsn, app="tests.support.stubborn:app") as supervised:
        wait_until(lambda: jobs.status(conn, job_id) == "running", "running")
        assert supervised.stop() == ExitCode.OK
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["attempt"]) == ("pending", 0)


def pending(conn: Conn, job_id: int) -> jobs.Row | None:
    row = jobs.live(conn, job_id)
    return row if row is not None and row["status"] == "pending" else None


@pytest.mark.parametrize("way", ["a second signal", "the end of the grace"])
def test_then_what_still_runs_is_stopped_and_given_back(dsn: str, conn: Conn, way: str) -> None:
    grace = "1m" if way == "a second signal" else "100ms"
    with Door() as door, Supervised(dsn, "--grace", grace, procs=2) as supervised:
        again, never = hold(conn, door), hold(conn, door, handler="once", max_attempts=1)
        visitors = [door.visitor() for _ in range(2)]
        for visitor in visitors:
            visitor.tell("burn")
        supervised.signal(signal.SIGTERM)
        supervised.event("stopping")
        if way == "a second signal":
            supervised.signal(signal.SIGTERM)
            supervised.event("stopping now, running jobs are killed and given back")
        for visitor in visitors:
            wait_gone(visitor.pid)
        assert supervised.wait() == ExitCode.OK
        events = [event["event"] for event in supervised.rest()]
    assert "child died" not in events, "a kill of our own is no news"
    row = jobs.live(conn, again)
    assert row is not None
    assert (row["status"], row["attempt"], row["crashes"]) == ("pending", 0, 0)
    assert [attempt["kind"] for attempt in jobs.history(conn, again)] == ["release"]
    row = jobs.final(conn, never)
    assert row is not None
    assert (row["status"], row["attempt"], row["error"]["kind"]) == ("failed", 1, "interrupted")
    invariants.check(conn, [again, never])


def test_a_third_signal_leaves_at_once(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn) as supervised:
        job_id = hold(conn, door)
        visitor = door.visitor()
        with conn.transaction():
            # Nothing can be written down while this lasts.
            conn.execute("LOCK TABLE tasuki.job_archive, tasuki.attempt IN ACCESS EXCLUSIVE MODE")
            supervised.signal(signal.SIGTERM)
            supervised.event("stopping")
            supervised.signal(signal.SIGTERM)
            supervised.event("stopping now, running jobs are killed and given back")
            wait_gone(visitor.pid)
            with psycopg.connect(dsn, autocommit=True) as other:
                wait_for_lock_wait(other)
            supervised.signal(signal.SIGTERM)
            assert supervised.wait(timeout=FLUSH_FOR / 2) == ExitCode.FORCED
    # The orphaned statement may still be carried out by the server, or not: the job is given back, or is rescued later.
    with Supervised(dsn) as second:
        again = door_visitor_of(second, conn, job_id)
        assert again in {1, 2}
        assert second.stop() == 0


def door_visitor_of(supervised: Supervised, conn: Conn, job_id: int) -> int:
    """The attempt of the job's next end: its door is gone, so it fails."""
    supervised.started()
    row = wait_until(lambda: (history := jobs.history(conn, job_id)) and history[-1]["kind"] == "retry" and history[-1])
    return int(row["attempt"])


def test_ctrl_c_in_a_terminal_is_for_the_supervisor_alone(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, procs=2, launcher=IN_A_TERMINAL) as supervised:
        supervised.started()
        job_id = hold(conn, door)
        visitor = door.visitor()
        supervised.say("\x03")
        assert supervised.event("stopping")["signal"] == "SIGINT"
        visitor.tell("print I go on")
        visitor.tell("return to the end")
        assert supervised.wait() == ExitCode.OK
        events = supervised.rest()
        log = "\n".join(supervised.log)
    assert "Traceback" not in log
    assert "KeyboardInterrupt" not in log
    assert "child died" not in [event["event"] for event in events]
    assert jobs.wait_final(conn, job_id)["result"] == "to the end"


def test_two_ctrl_c_in_a_terminal_leave_nothing_behind(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, procs=2, launcher=IN_A_TERMINAL) as supervised:
        job_ids = [hold(conn, door) for _ in range(2)]
        visitors = [door.visitor() for _ in range(2)]
        for visitor in visitors:
            visitor.tell("burn")
        supervised.say("\x03")
        supervised.event("stopping")
        supervised.say("\x03")
        assert supervised.wait() == ExitCode.OK
        supervised.rest()
        assert "Traceback" not in "\n".join(supervised.log)
    for job_id in job_ids:
        row = jobs.live(conn, job_id)
        assert row is not None
        assert (row["status"], row["attempt"]) == ("pending", 0)


@pytest.mark.parametrize("point", ["after_lease_commit", "after_result", "before_finish"])
def test_a_signal_at_any_point_ends_it_without_loss(dsn: str, conn: Conn, point: str) -> None:
    job_id = jobs.add(conn, handler="note", payload={"text": "x"})
    with Supervised(dsn, gates=[point]) as supervised:
        gate = supervised.gate()
        supervised.signal(signal.SIGTERM)
        gate.remove()
        assert supervised.wait() == ExitCode.OK
    if jobs.status(conn, job_id) == "pending":
        row = jobs.live(conn, job_id)
        assert row is not None
        assert row["attempt"] == 0
    else:
        assert jobs.status(conn, job_id) == "completed"
    invariants.check(conn, [job_id])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("module", ["multiprocessing.resource_tracker", "multiprocessing.forkserver"])
def test_a_signal_to_the_group_while_its_processes_start(dsn: str, number: signal.Signals, module: str) -> None:
    with Supervised(dsn, procs=2, new_session=True) as supervised:
        wait_until(lambda: any(module in each.command for each in leaks.tagged(supervised.tag)), module)
        os.killpg(supervised.pid, number)
        if number == signal.SIGQUIT:  # the supervisor has no answer to it, and ends as any program does
            assert supervised.wait() == -number
        else:
            assert supervised.event("stopping")["signal"] == number.name
            assert supervised.wait() == ExitCode.OK
        events = [event["event"] for event in supervised.rest()]
        leaks.assert_none(supervised.tag)
    assert "child did not start" not in events
    assert number == signal.SIGQUIT or events[-1] == "stopped"
    assert [line for line in supervised.log if not line.startswith(("{", "tasuki-mp ", "applied "))] == []


APP_THAT_HANGS = """
import os, socket
from tasuki_mp import Tasuki
app = Tasuki()
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.environ["TEST_DOOR"])
    sock.sendall(b'{"pid": %d, "job": 0, "lease_no": 0, "attempt": 0}\\n' % os.getpid())
    sock.recv(1)
"""


@pytest.mark.parametrize("preload", ["--preload=json", "--no-preload"])
def test_a_signal_while_the_application_is_imported(dsn: str, tmp_path: Path, preload: str) -> None:
    tmp_path.joinpath("hanging.py").write_text(APP_THAT_HANGS, encoding="utf-8")
    options = (preload, "--app-dir", str(tmp_path))
    with Door() as door, Supervised(dsn, *options, app="hanging:app", env={"TEST_DOOR": door.path}) as supervised:
        visitor = door.visitor()
        supervised.signal(signal.SIGTERM)
        assert supervised.wait(timeout=20) == ExitCode.OK
        visitor.wait_gone()
        leaks.assert_none(supervised.tag)


APP_THAT_WEDGES = """
import inspect, os, signal
from tasuki_mp import Tasuki
app = Tasuki()

@app.handler
def wedge() -> None:
    "Die in the middle of the executor's own pipe: the executor waits for the rest for ever."
    frame = inspect.currentframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    queue = frame.f_locals["result_queue"]
    queue._wlock.acquire()
    os.write(queue._writer.fileno(), b"\\0\\0\\1\\0" + b"only ten b")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_executor_that_hangs_for_ever_keeps_nobody_from_ending(dsn: str, conn: Conn, tmp_path: Path) -> None:
    tmp_path.joinpath("wedging.py").write_text(APP_THAT_WEDGES, encoding="utf-8")
    with Supervised(dsn, "--app-dir", str(tmp_path), app="wedging:app", procs=2) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="wedge")
        # Its death is noticed, and the slot has a new child, though the executor has not noticed anything.
        supervised.event("job will be retried", job=job_id)
        supervised.signal(signal.SIGTERM)
        assert supervised.wait(timeout=20) == ExitCode.OK
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["crashes"]) == ("pending", 1)
    invariants.check(conn, [job_id])
