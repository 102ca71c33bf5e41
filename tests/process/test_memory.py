"""A job that takes too much memory, or whose host has too little, ends or waits by name, and its neighbours go on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasuki_mp.supervisor.probe import Probe
from tests.support import invariants, jobs
from tests.support.door import Door, Visitor
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.waiting import wait_gone, wait_until

Conn = psycopg.Connection[Any]
APP = "tests.support.puppet:app"
MIB = 1 << 20
HOST = 700
NEARLY_FULL = "memory is nearly full, nothing more is started beside what runs"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
        invariants.check(connection)


@pytest.fixture(scope="module")
def supervised(dsn: str, conn: Conn) -> Iterator[Supervised]:
    with Supervised(dsn, "--poll", "20ms", "--memory-limit", f"{HOST}MiB", app=APP, procs=3) as program:
        program.started()
        yield program
        assert program.stop() == 0


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as opened:
        yield opened


def enqueue(conn: Conn, door: Door, *, max_attempts: int = 5, **limits: int) -> int:
    payload, own = {"door": door.path}, Jsonb(limits) if limits else None
    return jobs.add(conn, handler="puppet", payload=payload, max_attempts=max_attempts, limits=own)


def puppet(conn: Conn, door: Door, *, max_attempts: int = 5, **limits: int) -> Visitor:
    enqueue(conn, door, max_attempts=max_attempts, **limits)
    return door.visitor()


def now(conn: Conn) -> datetime:
    row = conn.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    instant: datetime = row[0]
    return instant


def seen_before(supervised: Supervised, event: str) -> None:
    """Let what earlier tests have brought about be past."""
    with contextlib.suppress(AssertionError):
        while supervised.event(event, timeout=0.1):
            pass


def finish(conn: Conn, visitor: Visitor) -> jobs.Row:
    try:
        visitor.tell("return done")
    except BrokenPipeError:
        raise AssertionError(f"it has ended by itself: {jobs.history(conn, visitor.job)}") from None
    row = jobs.wait_final(conn, visitor.job)
    assert row["result"] == "done"
    return row


# ── a job's own limit ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("act", ["eat 200", "eat_below 200"])
def test_beyond_its_limit_the_whole_tree_is_killed(supervised: Supervised, conn: Conn, door: Door, act: str) -> None:
    neighbour = puppet(conn, door)
    victim = puppet(conn, door, max_attempts=1, memory=100 * MIB)
    victim.tell(act)
    row = jobs.wait_final(conn, victim.job)
    error, usage = row["error"], row["usage"]
    assert (row["status"], row["crashes"], error["kind"], error["type"]) == ("failed", 1, "memory", "MemoryLimit")
    assert 100 * MIB < error["memory_peak"] <= 300 * MIB
    assert usage["memory_peak"] == error["memory_peak"]
    wait_gone(victim.pid)
    finish(conn, neighbour)


def test_pages_that_are_shared_or_can_be_dropped_do_not_count(supervised: Supervised, conn: Conn, door: Door) -> None:
    job = puppet(conn, door, max_attempts=1, memory=200 * MIB)
    job.ask("map_file 300")
    job.ask("eat 100")
    job.ask("fork_readers 4")
    # Whoever forks and lives on is looked at closely at least once in this time.
    witness = puppet(conn, door, max_attempts=1, memory=100 * MIB)
    witness.ask("fork_readers 1")
    witness.tell("eat 150")
    assert jobs.wait_final(conn, witness.job)["error"]["kind"] == "memory"
    finish(conn, job)


def test_almost_at_its_limit_the_child_is_replaced_after_it(supervised: Supervised, conn: Conn, door: Door) -> None:
    job = puppet(conn, door, memory=100 * MIB)
    job.ask("eat 85")
    row = finish(conn, job)
    assert 85 * MIB <= row["usage"]["memory_peak"] < 100 * MIB
    wait_gone(job.pid)


def test_the_next_attempt_may_have_more(supervised: Supervised, conn: Conn, door: Door) -> None:
    job_id = jobs.add(conn, handler="grow", payload={"mib": 150}, limits=Jsonb({"memory": 100 * MIB}))
    row = jobs.wait_final(conn, job_id)
    assert (row["status"], row["attempt"], row["limits"]) == ("completed", 2, {"memory": 200 * MIB})
    assert [attempt["error"]["kind"] for attempt in jobs.history(conn, job_id)] == ["memory"]


def test_a_memory_error_is_the_jobs_own_and_the_child_goes(supervised: Supervised, conn: Conn) -> None:
    row = jobs.wait_final(conn, jobs.add(conn, handler="run_out", max_attempts=1))
    assert (row["error"]["kind"], row["error"]["type"]) == ("error", "MemoryError")
    wait_gone(row["usage"]["pid"])


# ── the host's ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_youngest_large_job_is_given_back_and_the_second_time_it_ends(
    supervised: Supervised, conn: Conn, door: Door
) -> None:
    old = puppet(conn, door)
    old.ask("eat 100")
    young = puppet(conn, door)
    young.tell("eat 600")
    again = door.visitor()
    assert (again.job, again.attempt, again.lease_no) == (young.job, 1, 2), "no attempt was used"
    (released,) = jobs.history(conn, young.job)
    assert (released["kind"], released["error"]["kind"]) == ("release", "memory")
    assert released["usage"]["memory_peak"] > 200 * MIB
    again.tell("eat 600")
    third = door.visitor()
    ended = jobs.history(conn, young.job)[-1]
    assert (third.job, third.attempt, ended["kind"], ended["error"]["kind"]) == (young.job, 2, "retry", "memory")
    finish(conn, third)
    finish(conn, old)


def test_a_job_that_was_alone_ends_as_memory(supervised: Supervised, conn: Conn, door: Door) -> None:
    job = puppet(conn, door, max_attempts=1)
    job.tell("eat 800")
    row = jobs.wait_final(conn, job.job)
    assert (row["error"]["kind"], row["error"]["type"]) == ("memory", "HostMemory")


def test_with_nearly_no_memory_left_nothing_is_started(supervised: Supervised, conn: Conn, door: Door) -> None:
    large = puppet(conn, door)
    taken = 0
    seen_before(supervised, NEARLY_FULL)
    while True:  # up to where the supervisor says so, and not as far as where somebody has to go
        large.ask("eat 15")
        taken += 15
        try:
            supervised.event(NEARLY_FULL, timeout=1)
            break
        except AssertionError:
            assert taken < HOST
    waiting = enqueue(conn, door)
    ending = now(conn)
    finish(conn, large)
    visitor = door.visitor()
    assert visitor.job == waiting
    assert finish(conn, visitor)["started_at"] >= ending


def test_what_is_declared_is_kept_free(supervised: Supervised, conn: Conn, door: Door) -> None:
    probe = Probe()
    wait_until(  # what an earlier test's jobs took is given back
        lambda: all((probe.memory(pid) or 0) < 100 * MIB for pid in probe.below(supervised.pid)), "a host with room"
    )
    first = puppet(conn, door, memory=400 * MIB)
    hungry = enqueue(conn, door, memory=400 * MIB)
    finish(conn, puppet(conn, door))
    ending = now(conn)
    finish(conn, first)
    visitor = door.visitor()
    assert visitor.job == hungry
    assert finish(conn, visitor)["started_at"] >= ending


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_attempt_says_what_it_used(supervised: Supervised, conn: Conn, door: Door) -> None:
    row = jobs.wait_final(conn, jobs.add(conn, handler="work_below", payload={"seconds": 0.3}))
    usage = row["usage"]
    assert usage["cpu_seconds"] == pytest.approx(usage["user_seconds"] + usage["system_seconds"], abs=1e-3)
    assert usage["cpu_seconds"] > 0.28, "those of a subprocess"
    assert {"host", "pid", "slot", "seconds", "waited_seconds", "memory_peak"} <= usage.keys()


def test_peaks_are_the_jobs_own(supervised: Supervised, conn: Conn) -> None:
    def peak(mib: int) -> tuple[int, int]:
        row = jobs.wait_final(conn, jobs.add(conn, handler="touch", payload={"mib": mib}))
        return row["usage"]["pid"], row["usage"]["memory_peak"]

    def both_in_one_child() -> bool:
        (one, large), (two, small) = peak(100), peak(1)
        assert large > 100 * MIB
        # What an earlier test's job has left in the child counts for both.
        assert one != two or small < large - 90 * MIB
        return one == two

    wait_until(both_in_one_child, "a small job after a large one in one child")


def test_a_death_tells_what_was_seen_last(supervised: Supervised, conn: Conn, door: Door) -> None:
    job = puppet(conn, door, max_attempts=1)
    job.ask("eat 60")
    os.kill(job.pid, signal.SIGKILL)
    row = jobs.wait_final(conn, job.job)
    assert row["error"]["signal"] == row["usage"]["signal"] == "SIGKILL"
    assert "by somebody else" in row["error"]["message"] or "OOM" in row["error"]["message"]
