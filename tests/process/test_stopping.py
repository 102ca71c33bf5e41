"""Limits of time and cancels, on real children: who is asked, who is interrupted, who is killed, and what is recorded."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasuki_mp import Client
from tasuki_mp.errors import CommandError, JobNotRunningError
from tasuki_mp.store.commands import Stack
from tests.support import invariants, jobs
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]
APP = "tests.support.stubborn:app"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """One database for all tests here."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
        invariants.check(connection)


@pytest.fixture(scope="module")
def supervised(dsn: str, conn: Conn) -> Iterator[Supervised]:
    with Supervised(dsn, "--poll", "20ms", app=APP, procs=2) as program:
        program.started()
        yield program
        assert program.stop() == 0
        assert {event["event"] for event in program.rest() if event["level"] == "error"} <= {"job failed"}


def add(conn: Conn, handler: str, how: str, *, limits: dict[str, float] | None = None, max_attempts: int = 1) -> int:
    more = {} if limits is None else {"limits": Jsonb(limits)}
    return jobs.add(conn, handler=handler, payload={"how": how}, max_attempts=max_attempts, **more)


def running(conn: Conn, handler: str, how: str) -> int:
    job_id = add(conn, handler, how)
    wait_until(lambda: jobs.status(conn, job_id) == "running", f"job {job_id} running")
    return job_id


def error_of(conn: Conn, job_id: int) -> dict[str, Any]:
    row = jobs.wait_final(conn, job_id)
    assert row["status"] == "failed", row
    error: dict[str, Any] = row["error"]
    return error


# ── soft timeout ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("handler", "how"),
    [
        *[("go_on", how) for how in ("spin", "shrug off", "sleep", "loop")],
        *[("go_on_async", how) for how in ("await", "spin", "gather")],
    ],
)
def test_at_the_soft_timeout_the_handler_is_interrupted(
    supervised: Supervised, conn: Conn, handler: str, how: str
) -> None:
    error = error_of(conn, add(conn, handler, how, limits={"soft_timeout": 0.2}))

    assert (error["kind"], error["type"]) == ("timeout", "tasuki_mp.errors.SoftTimeout")
    assert "its soft timeout is 0.2 s" in error["message"]
    assert f"in {handler}" in error["traceback"]
    assert "interrupts.py" not in error["traceback"]
    assert "Current thread" in error["stack"]


def test_a_task_that_keeps_the_loop_from_turning_is_interrupted_itself(supervised: Supervised, conn: Conn) -> None:
    error = error_of(conn, add(conn, "go_on_async", "spin in a task", limits={"soft_timeout": 0.2}))

    assert (error["kind"], error["type"]) == ("timeout", "BaseExceptionGroup")
    assert "in _spin" in error["stack"]


@pytest.mark.parametrize("handler", ["go_on", "go_on_async"])
def test_a_handler_that_tidies_up_in_time_has_returned(supervised: Supervised, conn: Conn, handler: str) -> None:
    row = jobs.wait_final(conn, add(conn, handler, "tidy up", limits={"soft_timeout": 0.2}))

    assert row["status"] == "completed"
    assert row["result"]["ended by"] == "SoftTimeout"


def test_an_error_that_comes_of_it_is_a_timeout_too(supervised: Supervised, conn: Conn) -> None:
    error = error_of(conn, add(conn, "go_on", "fail", limits={"soft_timeout": 0.2}))

    assert (error["kind"], error["type"]) == ("timeout", "RuntimeError")
    assert "its soft timeout is 0.2 s; then RuntimeError: half done" in error["message"]


def test_an_interrupted_child_runs_no_other_job(supervised: Supervised, conn: Conn) -> None:
    pid = jobs.wait_final(conn, add(conn, "go_on", "tidy up", limits={"soft_timeout": 0.1}))["usage"]["pid"]

    ids = [jobs.add(conn, handler="quick") for _ in range(8)]

    assert pid not in {jobs.wait_final(conn, job_id)["usage"]["pid"] for job_id in ids}


def test_a_retry_has_the_same_time(supervised: Supervised, conn: Conn) -> None:
    job_id = add(conn, "go_on", "sleep", limits={"soft_timeout": 0.2, "timeout": 60}, max_attempts=2)

    error = error_of(conn, job_id)

    assert [attempt["error"]["kind"] for attempt in jobs.history(conn, job_id)] == ["timeout"]
    assert "its soft timeout is 0.2 s" in error["message"]


# ── timeout ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("handler", "how"), [("go_on", "burn"), ("withstand", "spin"), ("withstand", "burn"), ("go_on_async", "await")]
)
@pytest.mark.parametrize("soft", [None, 0.2])
def test_at_the_timeout_it_is_killed_and_its_stack_is_recorded(
    supervised: Supervised, conn: Conn, handler: str, how: str, soft: float | None
) -> None:
    if how == "await" and soft:
        pytest.skip("ends at the soft one")
    limits = {"timeout": 0.5} if soft is None else {"timeout": 0.5, "soft_timeout": soft}
    job_id = add(conn, handler, how, limits=limits)

    error = error_of(conn, job_id)

    assert (error["kind"], error["type"]) == ("timeout", "TimedOut")
    assert "its timeout is 0.5 s" in error["message"]
    assert float(error["message"].split()[2]) >= 0.5
    assert "thread" not in (jobs.wait_final(conn, job_id)["output"] or "")
    assert ("in burn" if how == "burn" else "in select" if how == "await" else "in spin") in error["stack"]


def test_a_rule_gives_a_retry_more_time(supervised: Supervised, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="persist", max_attempts=3)

    error = error_of(conn, job_id)

    errors = [*(attempt["error"] for attempt in jobs.history(conn, job_id)), error]
    assert [each["message"].partition("; ")[2] for each in errors] == [
        f"its timeout is {seconds} s" for seconds in ("0.2", "0.3", "0.45")
    ]
    assert all(
        float(each["message"].split()[2]) >= seconds for each, seconds in zip(errors, (0.2, 0.3, 0.45), strict=True)
    )


def test_a_stopped_child_is_killed_all_the_same(supervised: Supervised, conn: Conn) -> None:
    job_id = add(conn, "go_on", "spin", limits={"timeout": 3.0})
    pid = wait_until(lambda: (jobs.live(conn, job_id) or {}).get("pid"), "its row says where it runs")
    os.kill(pid, signal.SIGSTOP)

    error = error_of(conn, job_id)

    assert error["kind"] == "timeout"
    assert "stopped" in error["stack"]


# ── cancel ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("handler", "how"),
    [
        *[("go_on", how) for how in ("spin", "shrug off", "sleep", "loop", "watch")],
        *[("go_on_async", how) for how in ("await", "spin", "gather")],
        *[("withstand", how) for how in ("spin", "burn")],
        *[("unasked", how) for how in ("spin", "burn")],
    ],
)
def test_a_running_job_is_canceled(supervised: Supervised, conn: Conn, handler: str, how: str) -> None:
    job_id = running(conn, handler, how)

    assert jobs.cancel(conn, job_id) == "requested"

    row = jobs.wait_final(conn, job_id)
    assert (row["status"], row["error"]["kind"], row["crashes"]) == ("canceled", "canceled", 0)


@pytest.mark.parametrize("handler", ["go_on", "go_on_async"])
def test_what_is_returned_after_a_cancel_counts(supervised: Supervised, conn: Conn, handler: str) -> None:
    job_id = running(conn, handler, "tidy up")
    jobs.cancel(conn, job_id)

    row = jobs.wait_final(conn, job_id)
    assert (row["status"], row["result"]["ended by"]) == ("completed", "Canceled")


# ── stack ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["burn", "spin"])
def test_a_running_job_says_where_it_is(supervised: Supervised, conn: Conn, dsn: str, how: str) -> None:
    job_id = running(conn, "unasked", how)
    with Client(dsn) as client:

        def stack() -> Stack | None:
            """Once it has got there."""
            with contextlib.suppress(CommandError):
                found = client.stack(job_id)
                return found if f"in {how}" in found.text else None
            return None

        found = wait_until(stack, "its stack")

    assert found is not None
    assert found.text.startswith("Current thread")
    assert "tasuki_mp/child/main.py" not in found.text
    jobs.cancel(conn, job_id)
    assert jobs.wait_final(conn, job_id)["usage"]["pid"] == found.pid
    assert conn.execute("SELECT count(*) FROM tasuki.command").fetchone() == (0,)


@pytest.mark.parametrize("how", ["await", "gather", "spin in a task"])
def test_an_async_handler_says_where_its_tasks_wait(supervised: Supervised, conn: Conn, dsn: str, how: str) -> None:
    job_id = running(conn, "go_on_async", how)
    with Client(dsn) as client:

        def stack() -> str:
            """Once it has got there."""
            with contextlib.suppress(CommandError):
                found = client.stack(job_id).text
                return found if "The handler waits" in found and found.count(there) == times else ""
            return ""

        there, times = {"await": ("in sleep", 1), "gather": ("in sleep", 2), "spin in a task": ("in _spin", 1)}[how]
        found = wait_until(stack, "its stack")

    threads, _, tasks = found.partition("\n\nThe handler waits (most recent await first):\n")
    frames = tasks.splitlines()
    assert "Current thread" in threads
    assert frames.index(next(frame for frame in frames if frame.endswith(" in go_on_async"))) == (how != "gather")
    assert "interrupts.py" not in tasks
    if how == "gather":
        assert tasks.count("Task 'Task-") == 2
    if how == "spin in a task":
        assert " in _spin" in threads
        assert " in _spin" not in tasks, "one that runs does not wait"
    jobs.cancel(conn, job_id)
    assert jobs.wait_final(conn, job_id)["status"] == "canceled"


def test_nobody_is_asked_about_a_job_that_does_not_run(conn: Conn, dsn: str) -> None:
    waiting = jobs.add(conn, queue="elsewhere")
    with Client(dsn) as client:
        with pytest.raises(JobNotRunningError, match="it is pending"):
            client.stack(waiting)
        with pytest.raises(JobNotRunningError, match="there is no job"):
            client.stack(waiting + 1)


# ── a host that lacks much ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bare_host_is_told_of_once_and_its_jobs_are_in_hand(dsn: str, conn: Conn) -> None:
    with Supervised(dsn, "--queue", "bare", "--poll", "20ms", app=APP, procs=2, mutant="a bare host") as program:
        program.started()
        ids = [
            jobs.add(conn, queue="bare", handler="unasked", payload={"how": "burn"}, max_attempts=1),
            jobs.add(
                conn,
                queue="bare",
                handler="go_on",
                payload={"how": "burn"},
                limits=Jsonb({"timeout": 0.3}),
                max_attempts=1,
            ),
        ]
        wait_until(lambda: jobs.status(conn, ids[0]) == "running", "running")
        jobs.cancel(conn, ids[0])
        assert jobs.wait_final(conn, ids[0])["status"] == "canceled"
        assert error_of(conn, ids[1])["kind"] == "timeout"
        assert program.stop() == 0
        lacking = [event["what"] for event in program.rest() if event["event"] == "not to be had here"]
    assert len(lacking) == len(set(lacking)) == 5
