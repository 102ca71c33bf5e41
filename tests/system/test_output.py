"""What jobs write is stored with each attempt: all of it or its end, whoever wrote it and however the attempt ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg

from tests.support import invariants, jobs, outages
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.program import Program
from tests.support.waiting import wait_for_row, wait_until

Tasuki = Callable[..., Any]
Conn = psycopg.Connection[Any]
APP = "tests.support.steps:app"


def add(conn: Conn, door: Door, **columns: Any) -> int:
    return jobs.add(conn, **{"handler": "steps", "payload": {"door": door.path}, **columns})


def written(text: str) -> str:
    return f"Python: {text}\nC: {text}\nsubprocess: {text}\n"


def test_what_each_attempt_wrote_is_stored_with_it(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--poll", "50ms", app=APP) as supervised:
        job_id = add(conn, door)
        first = door.visitor()
        first.ask("print one\x01\x1b[31m\ufffd")
        first.tell("raise no")
        second = door.visitor()
        second.tell("raise no")  # silent
        third = door.visitor()
        third.ask("print three")
        third.signal(signal.SIGKILL)
        fourth = door.visitor()
        fourth.ask("print four")
        fourth.tell("return done")
        assert jobs.wait_final(conn, job_id)["output"] == written("four")
        outputs = [attempt["output"] for attempt in jobs.history(conn, job_id)]
        assert outputs == [written("one\x01\x1b[31m\ufffd"), None, written("three")]
        assert supervised.stop() == 0
    invariants.check(conn, [job_id])


def test_what_is_logged_is_heard_without_any_configuration(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP) as supervised:
        job_id = add(conn, door)
        visitor = door.visitor()
        visitor.ask("log careful")
        visitor.tell("return done")
        assert jobs.wait_final(conn, job_id)["output"] == "INFO careful\ncareful\n"  # the second by logging's own rule
        assert supervised.stop() == 0


def test_a_crash_is_recorded_with_its_stack_and_the_last_words(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP) as supervised:
        job_id = add(conn, door, max_attempts=1)
        visitor = door.visitor()
        visitor.ask("print last words")
        visitor.ask("mute")
        visitor.signal(signal.SIGSEGV)
        row = jobs.wait_final(conn, job_id)
        error = row["error"]
        assert (error["kind"], error["signal"], error["output"]) == ("crash", "SIGSEGV", written("last words"))
        assert error["traceback"].startswith("Fatal Python error: Segmentation fault")
        assert "in steps" in error["traceback"]
        assert row["output"].startswith(written("last words")) and "Fatal Python error" in row["output"]
        assert supervised.stop() == 0


def test_a_job_that_never_stops_writing_costs_bounded_memory_and_keeps_its_end(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP, procs=2) as supervised:
        babbler, other = add(conn, door, max_attempts=1), add(conn, door)
        visitors = {visitor.job: visitor for visitor in (door.visitor() for _ in range(2))}
        out = f"/proc/{visitors[babbler].pid}/fd/1"
        visitors[babbler].tell("babble")
        shown = supervised.event("output", job=babbler, handler="steps", attempt=1)
        assert shown["slot"] in {0, 1}
        # Both go on meanwhile: nobody waits for anybody.
        wait_until(lambda: os.stat(out).st_size > 256 << 20, "a quarter of a gigabyte of output")
        assert os.stat(out).st_blocks * 512 < 128 << 20, "what was read is given back"
        visitors[other].tell("return done")
        assert jobs.wait_final(conn, other)["status"] == "completed"
        visitors[babbler].signal(signal.SIGKILL)
        output = jobs.wait_final(conn, babbler)["output"]
        note, _, rest = output.partition("\n")
        left_out = re.fullmatch(r"\[(\d+) bytes of output left out\]", note)
        assert left_out and int(left_out[1]) > 200 << 20
        assert 56 << 10 < len(rest) <= 64 << 10, "the end, without the line that it begins in the middle of"
        assert rest.count("babble") > 8000
        assert supervised.stop() == 0


def test_logs_shows_every_attempt_and_what_runs_from_its_host(dsn: str, conn: Conn, tasuki: Tasuki) -> None:
    with Door() as door, Supervised(dsn, "--poll", "50ms", app=APP) as supervised:
        job_id = add(conn, door)
        first = door.visitor()
        assert tasuki("logs", job_id, "--dsn", dsn).out == ""
        first.ask("print one\x1b[2J")
        ended = tasuki("logs", job_id, "--dsn", dsn)
        assert (ended.code, ended.out, ended.err) == (0, written("one\\x1b[2J"), "")
        assert tasuki("logs", job_id, "--dsn", dsn, "--raw").out == written("one\x1b[2J")
        first.tell("raise no")
        second = door.visitor()
        second.ask("print two")
        ended = tasuki("logs", job_id, "--dsn", dsn)
        assert (ended.out, ended.err) == (
            written("one\\x1b[2J") + written("two"),
            "── run 1, attempt 1 ──\n── run 2, attempt 2 ──\n",
        )
        second.tell("return done")
        jobs.wait_final(conn, job_id)
        assert tasuki("logs", job_id, "--dsn", dsn).out == ended.out
        assert supervised.stop() == 0
    unknown = tasuki("logs", job_id + 1, "--dsn", dsn)
    assert (unknown.code, "there is no job" in unknown.err) == (1, True)


def test_logs_follows_a_job_to_its_end_and_says_everything_once(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--poll", "50ms", app=APP) as supervised:
        job_id = add(conn, door)
        first = door.visitor()
        first.ask("print one")
        with Program("-m", "tasuki_mp", "logs", "-f", str(job_id), env={"TASUKI_DSN": dsn}) as follower:
            assert [follower.line() for _ in range(3)] == written("one").splitlines()
            first.ask("print äöü")
            assert [follower.line() for _ in range(3)] == written("äöü").splitlines()
            outages.terminate(conn)
            first.ask("print three")
            first.signal(signal.SIGKILL)
            second = door.visitor()
            second.ask("print four")
            second.tell("return done")
            assert follower.further_lines() == (written("three") + written("four")).splitlines()
            assert follower.wait() == 0
        assert supervised.stop() == 0


def test_logs_follows_a_job_that_a_deploy_moves_to_another_supervisor(dsn: str, conn: Conn) -> None:
    with Door() as door:
        job_id = add(conn, door)
        with Supervised(dsn, app=APP) as old:
            first = door.visitor()
            first.ask("print one")
            with Program(
                *("-m", "tasuki_mp", "logs", "-f", str(job_id)), env={"TASUKI_DSN": dsn}, stderr=subprocess.STDOUT
            ) as follower:
                assert [follower.line() for _ in range(3)] == written("one").splitlines()
                # It waits there for more, and is told that nothing will come.
                wait_for_row(conn, "SELECT 1 FROM tasuki.command WHERE kind = 'logs' AND reply IS NULL")
                old.signal(signal.SIGTERM)
                first.tell("snooze")
                assert old.wait() == 0
                with Supervised(dsn, app=APP) as new:
                    second = door.visitor()
                    second.ask("print two")
                    second.tell("return done")
                    lines = follower.further_lines()
                    assert follower.wait() == 0
                    assert new.stop() == 0
    assert lines[-4:] == ["── run 2, attempt 1 ──", *written("two").splitlines()]
    assert not any("has not answered" in line for line in lines), lines
