"""A long job goes on from what it left, whatever it was that ended its attempt."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, JobHandle, Progress
from tests.support import invariants, jobs, outages
from tests.support.door import Door, Visitor
from tests.support.hooked import Supervised
from tests.support.waiting import wait_for_row, wait_until

Tasuki = Callable[..., Any]
Conn = psycopg.Connection[Any]
APP = "tests.support.steps:app"


def add(conn: Conn, door: Door, **columns: Any) -> int:
    return jobs.add(conn, **{"handler": "steps", "payload": {"door": door.path}, **columns})


def kept(conn: Conn, job_id: int) -> Any:
    row = conn.execute("SELECT state FROM tasuki.checkpoint WHERE job_id = %s", (job_id,)).fetchone()
    return None if row is None else row[0]


ENDS: dict[str, tuple[Callable[[Visitor], None], int]] = {
    "exception": (lambda visitor: visitor.tell("raise no"), 2),
    "snooze": (lambda visitor: visitor.tell("snooze"), 1),
    "exit": (lambda visitor: visitor.tell("exit 3"), 2),
    "SIGKILL": (lambda visitor: visitor.signal(signal.SIGKILL), 2),
    "SIGSEGV": (lambda visitor: visitor.signal(signal.SIGSEGV), 2),
}
"""How an attempt ends, and the number of the next one."""


@pytest.mark.parametrize("end", ENDS)
def test_the_next_attempt_begins_with_the_last_word_of_this_one(dsn: str, conn: Conn, end: str) -> None:
    act, attempt = ENDS[end]
    with Door() as door, Supervised(dsn, "--poll", "50ms", app=APP) as supervised:
        job_id = add(conn, door)
        visitor = door.visitor()
        assert visitor.restored is None
        visitor.ask('checkpoint {"step": 1}')
        visitor.ask('checkpoint {"step": 2, "text": "\\u00e4\\u0007"}')  # and no time to write either down
        act(visitor)
        again = door.visitor()
        assert (again.restored, again.attempt) == ({"step": 2, "text": "ä\a"}, attempt)
        act(again)  # says nothing: what it began with stays
        third = door.visitor()
        assert third.restored == again.restored
        third.tell("return done")
        assert jobs.wait_final(conn, job_id)["status"] == "completed"
        assert kept(conn, job_id) is None, "it goes with the job that completed"
        assert supervised.stop() == 0
    invariants.check(conn, [job_id])


def test_progress_and_checkpoints_are_on_record_while_the_job_runs(dsn: str, conn: Conn, tasuki: Tasuki) -> None:
    with Door() as door, Supervised(dsn, app=APP) as supervised:
        job_id = add(conn, door)
        visitor = door.visitor()
        visitor.ask("progress 0.25 chunk 1 of 4")
        visitor.ask("checkpoint [1]")
        wait_until(lambda: kept(conn, job_id) == [1], "the checkpoint")
        row = wait_for_row(conn, "SELECT progress, progress_note FROM tasuki.job WHERE progress IS NOT NULL")
        assert row == (0.25, "chunk 1 of 4")
        assert JobHandle(job_id, Client(dsn)).progress() == Progress(0.25, "chunk 1 of 4")
        assert "25 % chunk 1 of 4" in tasuki("status", "--dsn", dsn).out
        shown = tasuki("show", job_id, "--dsn", dsn)
        assert "25 % chunk 1 of 4" in shown.out and "3 bytes of JSON" in shown.out
        assert tasuki("show", job_id, "--json", "--dsn", dsn).json["checkpoint"] == [1]
        visitor.ask("progress 0.5")
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE progress = 0.5 AND progress_note IS NULL")
        visitor.ask("keep [2]")
        assert kept(conn, job_id) == [2], "who waits goes on when it is on record, and no sooner"
        visitor.tell("raise no")
        again = door.visitor()
        assert again.restored == [2]
        row = jobs.live(conn, job_id)
        assert row is not None and (row["progress"], row["progress_note"]) == (None, None)
        again.tell("return done")
        jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0


def test_killed_with_its_supervisor_it_goes_on_from_what_was_on_record(dsn: str, conn: Conn) -> None:
    with Door() as door:
        job_id = add(conn, door)
        for number in range(2):
            with Supervised(dsn, app=APP) as supervised:
                visitor = door.visitor()
                assert visitor.restored == (number or None)
                visitor.ask(f"keep {number + 1}")
                supervised.kill()
        with Supervised(dsn, app=APP) as last:
            visitor = door.visitor()
            assert (visitor.restored, visitor.attempt) == (2, 3)
            visitor.tell("return done")
            jobs.wait_final(conn, job_id)
            assert last.stop() == 0
    invariants.check(conn, [job_id])


def test_a_deploy_moves_it_to_another_supervisor_without_using_an_attempt(dsn: str, conn: Conn, tasuki: Tasuki) -> None:
    with Door() as door:
        with Supervised(dsn, "--grace", "1s", app=APP, procs=3) as old:
            polite, rude, last = add(conn, door), add(conn, door), add(conn, door, handler="once", max_attempts=1)
            visitors = {visitor.job: visitor for visitor in (door.visitor() for _ in range(3))}
            for job_id, visitor in visitors.items():
                visitor.ask(f"checkpoint {job_id}")
            old.signal(signal.SIGTERM)
            visitors[polite].ask("stop?")
            visitors[polite].ask("checkpoint [1]")
            visitors[polite].tell("snooze")
            wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE id = %s AND status = 'pending'", [polite])
            assert old.wait() == 0
        row = jobs.wait_final(conn, last)
        assert (row["status"], row["error"]["kind"]) == ("failed", "interrupted"), "never started twice"
        assert kept(conn, last) == last, "what it left stays"
        with Supervised(dsn, app=APP, procs=2) as new:
            again = {visitor.job: visitor for visitor in (door.visitor() for _ in range(2))}
            assert {job_id: visitor.restored for job_id, visitor in again.items()} == {polite: [1], rude: rude}
            assert {visitor.attempt for visitor in again.values()} == {1}
            live = {job_id: jobs.live(conn, job_id) for job_id in again}
            assert {job_id: row and row["interruptions"] for job_id, row in live.items()} == {polite: 1, rude: 1}
            assert "interrupted once" in tasuki("status", "--dsn", dsn).out
            assert "interrupted once" in tasuki("show", rude, "--dsn", dsn).out
            for visitor in again.values():
                visitor.tell("return done")
            for job_id in again:
                jobs.wait_final(conn, job_id)
            assert new.stop() == 0
    invariants.check(conn, [polite, rude, last])


def test_who_waits_for_its_checkpoint_waits_for_the_database(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP) as supervised:
        job_id = add(conn, door)
        visitor = door.visitor()
        supervised.started()
        with outages.outage(dsn, conn):
            visitor.tell("keep [1]")
            supervised.event("progress and checkpoints not written, will try again")
            assert kept(conn, job_id) is None
        visitor.hear("done")
        assert kept(conn, job_id) == [1]
        visitor.tell("return done")
        jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0


def test_a_row_that_somebody_holds_delays_only_its_own_checkpoint(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP, procs=2) as supervised:
        ids = [add(conn, door) for _ in range(2)]
        visitors = {visitor.job: visitor for visitor in (door.visitor() for _ in ids)}
        with conn.transaction():
            conn.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (ids[0],))
            visitors[ids[0]].tell("keep 1")
            visitors[ids[1]].ask("keep 2")
        visitors[ids[0]].hear("done")
        assert [kept(conn, job_id) for job_id in ids] == [1, 2]
        for visitor in visitors.values():
            visitor.tell("return done")
        for job_id in ids:
            jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0


def test_a_failed_job_keeps_what_it_left(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, app=APP) as supervised:
        job_id = add(conn, door, max_attempts=1)
        visitor = door.visitor()
        visitor.ask('checkpoint "here"')
        visitor.tell("raise no")
        assert jobs.wait_final(conn, job_id)["status"] == "failed"
        assert kept(conn, job_id) == "here"
        assert supervised.stop() == 0
