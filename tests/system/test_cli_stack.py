"""`tasuki-mp stack`: where a running job is, or why nobody can say."""

from __future__ import annotations

from typing import Any

import psycopg

from tasuki_mp.config import ExitCode
from tests.support import jobs
from tests.support.door import Door
from tests.support.holder import Holder
from tests.support.hooked import Supervised
from tests.support.waiting import wait_until
from tests.system.conftest import Ended, Tasuki

Conn = psycopg.Connection[Any]


def test_it_shows_the_frames_of_a_handler_that_is_in_c(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        visitor.tell("burn")

        def stack() -> Ended | None:
            ended = tasuki("stack", job_id, "--dsn", dsn)
            return ended if "sum" in ended.out or " in hold" in ended.out else None

        ended = wait_until(stack, "the stack")
        assert ended is not None
        as_json = tasuki("stack", job_id, "--json", "--dsn", dsn)
        jobs.cancel(conn, job_id)
        jobs.wait_final(conn, job_id)
        supervised.stop()
    assert (ended.code, ended.err) == (ExitCode.OK, "")
    first, *frames = ended.out.splitlines()
    assert first.startswith(f"job {job_id} has run for ")
    assert f"pid {visitor.pid}" in first
    assert frames[0].startswith("Current thread")
    assert as_json.json["id"] == job_id
    assert as_json.json["pid"] == visitor.pid
    assert as_json.json["text"].splitlines()[1:] == frames[1:]


def test_without_an_answer_it_fails_and_says_why(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    waiting = jobs.add(conn, queue="elsewhere")
    with Holder(dsn) as holder:
        holder.register(host="evil\x1b[31mhost")
        jobs.add(conn)
        silent = holder.lease_one().id
        expected = {
            (waiting,): f"tasuki-mp: job {waiting} does not run: it is pending\n",
            (silent + 1,): f"tasuki-mp: there is no job {silent + 1}\n",
            (
                silent,
                "--timeout",
                "0.1",
            ): f"tasuki-mp: the supervisor that runs job {silent} on evil\\x1b[31mhost has not "
            "answered within 0.1 s; `tasuki-mp status` says when it was last heard of\n",
        }
        for arguments, complaint in expected.items():
            ended = tasuki("stack", *arguments, "--dsn", dsn)
            assert (ended.code, ended.out, ended.err) == (ExitCode.FAILED, "", complaint)
