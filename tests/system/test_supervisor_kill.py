"""A supervisor is killed: its children die with it, and the next one takes over what it held."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import invariants, jobs, leaks
from tests.support.door import Door
from tests.support.hooked import ELSEWHERE, Supervised
from tests.support.waiting import wait_for_row, wait_gone, wait_until

Conn = psycopg.Connection[Any]


ATTEMPTS = {
    "child_hello": 1,
    "before_heartbeat": 1,
    "after_lease_commit": 2,
    "before_dispatch": 2,
    "after_result": 2,
    "before_finish": 2,
    "after_finish_sent": 1,
}
"""Points where a supervisor is killed, and the attempt at which its job is then done: a lease counts, an end is kept."""


def test_killed_anywhere_its_job_is_done_by_the_next(dsn: str, conn: Conn) -> None:
    ids = {point: jobs.add(conn, handler="note", queue=point, payload={"text": point}) for point in ATTEMPTS}
    for point in ATTEMPTS:
        with Supervised(dsn, "--queue", point, gates=[point]) as first:
            first.gate()
            first.kill()
            leaks.assert_none(first.tag)
    queues = [word for point in ATTEMPTS for word in ("--queue", point)]
    with Supervised(dsn, *queues) as second:
        second.started()
        rows = {point: jobs.wait_final(conn, job_id) for point, job_id in ids.items()}
        assert second.stop() == 0
    assert {point: row["attempt"] for point, row in rows.items()} == ATTEMPTS
    assert {(row["status"], row["result"]) for row in rows.values()} == {("completed", point) for point in ATTEMPTS}
    invariants.check(conn, list(ids.values()))


def test_killed_with_children_that_burn_in_c_nothing_is_left_and_the_next_goes_on(dsn: str, conn: Conn) -> None:
    with Door() as door:
        ids = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
        with Supervised(dsn, procs=2) as first:
            visitors = [door.visitor() for _ in ids]
            for visitor in visitors:
                visitor.tell("burn")
            first.kill()
            for visitor in visitors:
                wait_gone(visitor.pid)
            leaks.assert_none(first.tag)
        with Supervised(dsn, procs=2) as second:  # the lease is a minute long: it need not run out
            again = [door.visitor() for _ in ids]
            assert {(visitor.job, visitor.attempt) for visitor in again} == {(job_id, 2) for job_id in ids}
            assert {jobs.history(conn, job_id)[0]["kind"] for job_id in ids} == {"rescue"}
            for visitor in again:
                visitor.tell("return done")
            for job_id in ids:
                assert jobs.wait_final(conn, job_id)["status"] == "completed"
            assert second.stop() == 0
    invariants.check(conn, ids)


def test_a_job_that_its_supervisor_dies_of_ends_when_its_attempts_are_used_up(dsn: str, conn: Conn) -> None:
    with Door() as door:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path}, max_attempts=2)
        for attempt in (1, 2):
            with Supervised(dsn) as supervised:
                assert door.visitor().attempt == attempt
                supervised.kill()
        with Supervised(dsn) as last:
            row = jobs.wait_final(conn, job_id)
            last.started()
            assert last.stop() == 0
        assert door.is_quiet()
    assert (row["status"], row["attempt"], row["error"]["type"]) == ("failed", 2, "Lost")
    assert "all 2 attempts are used up" in row["error"]["message"]
    invariants.check(conn, [job_id])


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace takes root to make")
def test_elsewhere_the_lease_has_to_expire_first(dsn: str, conn: Conn) -> None:
    with Door() as door:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        with Supervised(dsn) as first:
            door.visitor()
            first.kill()
        held = jobs.live(conn, job_id)
        with Supervised(dsn, "--lease", "1s", launcher=ELSEWHERE) as second:
            second.started()
            # By then it has looked around at least once, and has found nobody whose death it could prove.
            conn.execute("UPDATE tasuki.supervisor SET seen_at = seen_at - interval '1 s'")
            wait_for_row(
                conn, "SELECT 1 FROM tasuki.supervisor WHERE lease_seconds = 1 AND seen_at > now() - interval '1 s'"
            )
            assert held is not None
            unchanged = jobs.live(conn, job_id)
            assert unchanged is not None and unchanged["owner"] == held["owner"]
            conn.execute(
                "UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour', lease_seconds = 1 WHERE pid = %s",
                [first.pid],
            )
            jobs.expire(conn, job_id)
            visitor = door.visitor()
            assert (visitor.job, visitor.attempt) == (job_id, 2)
            visitor.tell("return done")
            assert jobs.wait_final(conn, job_id)["status"] == "completed"
            second.event("dead supervisor forgotten")


def test_jobs_outlive_their_forkserver(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, procs=2) as supervised:
        supervised.started()
        for slot in range(2):
            supervised.event("child ready", slot=slot)
        ids = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
        visitors = [door.visitor() for _ in ids]
        os.kill(parent_of(visitors[0].pid), signal.SIGKILL)
        for _ in visitors:
            supervised.event("forkserver died, child runs on")
        for visitor in visitors:
            visitor.tell("return lived on")
        for job_id in ids:
            row = jobs.wait_final(conn, job_id)
            assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "lived on")
        for slot in range(2):
            supervised.event("child ready", slot=slot)
        more = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
        again = [door.visitor() for _ in more]
        assert {visitor.pid for visitor in again}.isdisjoint(visitor.pid for visitor in visitors)
        for visitor in again:
            visitor.tell("return replaced")
        for job_id in more:
            assert jobs.wait_final(conn, job_id)["status"] == "completed"
        assert supervised.stop() == 0
    invariants.check(conn, ids + more)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_sent_to_the_whole_group_is_for_the_supervisor_alone(
    dsn: str, conn: Conn, number: signal.Signals
) -> None:
    with Door() as door, Supervised(dsn, new_session=True) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        assert blocked(visitor.pid) == blocked(parent_of(visitor.pid)) == 0
        os.killpg(supervised.pid, number)
        supervised.event("stopping")
        visitor.tell("return in peace")
        assert supervised.wait() == 0
        events = [event["event"] for event in supervised.rest()]
    row = jobs.final(conn, job_id)
    assert row is not None and (row["status"], row["attempt"]) == ("completed", 1)
    assert "forkserver died, child runs on" not in events
    assert "child died" not in events
    assert "Traceback" not in "\n".join(supervised.log)
    invariants.check(conn, [job_id])


def blocked(pid: int) -> int:
    """The signals that the process has blocked, as a mask."""
    return int(
        re.findall(r"^SigBlk:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)[0], 16
    )


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def test_what_a_killed_one_left_in_the_temporary_folder_is_removed_by_the_next(dsn: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # whose name is short enough for a socket
        place, env = Path(folder), {"TMPDIR": folder}
        with Supervised(dsn, env=env) as first:
            first.started()
            first.kill()
        left = list(place.iterdir())
        assert len(left) == 1
        with Supervised(dsn, env=env) as second:
            wait_until(lambda: not left[0].exists())
            assert second.stop() == 0
        assert list(place.iterdir()) == []
