"""`tasuki-mp top` with a real supervisor: as text, and as a page that is steered by keys."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import psycopg

from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import IN_A_TERMINAL, Supervised
from tests.support.program import Program
from tests.support.waiting import wait_until

Conn = psycopg.Connection[tuple[Any, ...]]


def test_as_text_it_names_every_slot_and_its_job(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, procs=2) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()

        def row() -> str | None:
            # On a busy machine its supervisor may take longer than the page waits; then it says so.
            with Program("-m", "tasuki_mp", "top", env={"TASUKI_DSN": dsn}, stderr=subprocess.STDOUT) as program:
                assert program.wait() == 0
                lines = program.further_lines()
            return next((line for line in lines if str(visitor.pid) in line), None)

        found = wait_until(row, "the job on the page")
        assert found is not None
        assert str(job_id) in found
        assert "hold" in found
        assert "MiB" in found
        visitor.tell("return done")


def test_a_host_that_nobody_works_on_is_said_to_be_that(dsn: str) -> None:
    with Supervised(dsn) as supervised:
        supervised.started()
        with Program("-m", "tasuki_mp", "top", "--host", "nosuch", env={"TASUKI_DSN": dsn}) as program:
            assert program.wait() == 0
            last = program.further_lines()[-1]
    assert last == f"nobody works on this database on nosuch, but on {socket.gethostname()}"


def test_a_job_is_looked_into_and_canceled_by_keys(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        door.visitor()
        top = ("-m", "tasuki_mp", "top", "--every", "200ms")
        with Program(*IN_A_TERMINAL, *top, env={"TASUKI_DSN": dsn, "TERM": "xterm", "COLUMNS": "200"}) as program:
            wait_until(lambda: "hold" in program.line(), "the job on the page")
            program.say("s")
            wait_until(lambda: "door.py" in program.line(), "its stack")
            program.say(" ")
            program.say("l")
            wait_until(lambda: "it has written nothing" in program.line(), "its output")
            program.say(" ")
            program.say("c")
            wait_until(lambda: f"cancel job {job_id}?" in program.line(), "the question")
            program.say("y")
            assert jobs.wait_final(conn, job_id)["status"] == "canceled"
            program.say("q")
            assert program.wait() == 0
