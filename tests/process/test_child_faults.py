"""Whatever a handler does to its process, its own job gets a clear end, and nobody else notices."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tasuki_mp.supervisor import tree
from tests.support import invariants, jobs, leaks
from tests.support.door import Door, Visitor
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.puppet import EXCEPTIONS
from tests.support.shapes import CHAIN
from tests.support.waiting import NotInTimeError, wait_gone, wait_until

Conn = psycopg.Connection[Any]
APP = "tests.support.puppet:app"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """One database for the module: its supervisor has to get over everything that the tests do to it."""
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


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as opened:
        yield opened


def enqueue(conn: Conn, handler: str, *, max_attempts: int = 5, **payload: Any) -> int:
    return jobs.add(conn, handler=handler, payload=payload, max_attempts=max_attempts)


def run(conn: Conn, handler: str, *, max_attempts: int = 5, **payload: Any) -> jobs.Row:
    return jobs.wait_final(conn, enqueue(conn, handler, max_attempts=max_attempts, **payload))


def runs(conn: Conn, job_id: int) -> list[jobs.Row]:
    """The earlier attempts that did run: a job may also have waited behind another, and have been given back."""
    return [attempt for attempt in jobs.history(conn, job_id) if attempt["kind"] != "release"]


def puppet(conn: Conn, door: Door, *, max_attempts: int = 1) -> Visitor:
    enqueue(conn, "puppet", max_attempts=max_attempts, door=door.path)
    return door.visitor()


def below(pid: int) -> set[int]:
    return {stat.pid for stat in tree.descendants(pid).values() if not stat.is_gone}


# ── death ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("act", "name", "code"),
    [
        ("kill 9", "SIGKILL", None),
        ("kill 11", "SIGSEGV", None),
        ("kill 6", "SIGABRT", None),
        ("exit 0", "", 0),
        ("exit 7", "", 7),
    ],
)
def test_a_death_is_one_jobs_crash_and_nobody_elses(
    supervised: Supervised, conn: Conn, door: Door, act: str, name: str, code: int | None
) -> None:
    sibling, victim = puppet(conn, door), puppet(conn, door)

    victim.ask(act)

    row = jobs.wait_final(conn, victim.job)
    assert (row["status"], row["attempt"], row["crashes"]) == ("failed", 1, 1)
    error = row["error"]
    assert (error["kind"], error.get("signal", ""), error.get("exit_code")) == ("crash", name, code)
    if name in {"SIGSEGV", "SIGABRT"}:
        assert "in kill" in error["traceback"]  # the stack at the end, by faulthandler
    supervised.event("child died", pid=victim.pid, job=victim.job, handler="puppet")
    assert run(conn, "pid")["result"] not in {victim.pid, sibling.pid}
    sibling.tell("return unharmed")
    assert jobs.wait_final(conn, sibling.job)["result"] == "unharmed"


@pytest.mark.speed
def test_a_new_child_stands_at_once_after_a_death(supervised: Supervised, conn: Conn, door: Door) -> None:
    sibling, victim = puppet(conn, door), puppet(conn, door)
    seconds, from_scratch = [], []
    for _ in range(5):
        enqueue(conn, "puppet", max_attempts=1, door=door.path)
        victim.ask("kill 9")
        wait_gone(victim.pid)
        began = time.monotonic()
        victim = door.visitor()  # the sibling's slot is taken: only the dead child's can have become free
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", f"import {APP.partition(':')[0]}"], check=True)
        from_scratch.append(time.monotonic() - began)
    # Some 30 ms on a machine that has nothing else to do. On any other: about what an interpreter takes to start there.
    assert median(seconds) < 2 * median(from_scratch)
    for visitor in (sibling, victim):
        visitor.tell("return done")
        jobs.wait_final(conn, visitor.job)


def test_a_child_that_dies_idle_harms_no_job(supervised: Supervised, conn: Conn) -> None:
    pid = run(conn, "pid")["result"]

    os.kill(pid, signal.SIGKILL)

    supervised.event("child died", pid=pid)
    rows = [run(conn, "pid") for _ in range(4)]
    assert {(row["status"], row["attempt"], row["crashes"]) for row in rows} == {("completed", 1, 0)}
    assert pid not in {row["result"] for row in rows}


def test_a_pill_is_failed_after_three_deaths_and_the_others_run_once(supervised: Supervised, conn: Conn) -> None:
    ids = jobs.fill(conn, 200, handler="pid")
    pill = enqueue(conn, "pill", max_attempts=20)

    row = jobs.wait_final(conn, pill)

    assert (row["status"], row["attempt"], row["crashes"]) == ("failed", 3, 3)
    assert (row["error"]["kind"], row["error"]["signal"]) == ("poison", "SIGSEGV")
    assert [attempt["error"]["signal"] for attempt in runs(conn, pill)] == ["SIGSEGV"] * 2
    for job_id in ids:
        assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert runs(conn, job_id) == []


def test_while_a_pill_is_taken_the_others_go_on(supervised: Supervised, conn: Conn, door: Door) -> None:
    pill = jobs.add(conn, handler="large_pill", payload={"door": door.path}, priority=0, max_attempts=20)
    for death in range(1, 11):
        visitor = door.visitor()
        assert visitor.attempt == death
        rows = [jobs.wait_final(conn, job_id) for job_id in jobs.fill(conn, 40, handler="pid")]
        assert {(row["status"], row["attempt"], row["crashes"]) for row in rows} == {("completed", 1, 0)}
        visitor.ask("kill 11")

    last = jobs.wait_final(conn, pill)

    assert (last["attempt"], last["error"]["kind"]) == (10, "poison")


def test_recursion_in_c_ends_one_job(supervised: Supervised, conn: Conn) -> None:
    error = run(conn, "recurse", max_attempts=1)["error"]

    if error["kind"] == "crash":
        assert error["signal"] == "SIGSEGV"
        assert "Fatal Python error: Segmentation fault" in error["traceback"]
    else:
        assert error["type"] == "RecursionError"


@pytest.mark.parametrize("act", ["close_all", "babble"])
def test_a_child_that_cannot_be_understood_any_more_is_killed(
    supervised: Supervised, conn: Conn, door: Door, act: str
) -> None:
    victim = puppet(conn, door)

    victim.ask(act)

    wait_gone(victim.pid)
    row = jobs.wait_final(conn, victim.job)
    assert (row["status"], row["error"]["kind"], row["error"]["signal"]) == ("failed", "crash", "SIGKILL")


@pytest.mark.parametrize("part", ["half", "header"])
def test_a_child_that_dies_in_the_middle_of_a_frame_has_crashed(
    supervised: Supervised, conn: Conn, door: Door, part: str
) -> None:
    sibling, victim = puppet(conn, door), puppet(conn, door)

    victim.ask(f"die_in_mid_frame {part}")

    row = jobs.wait_final(conn, victim.job)
    assert (row["status"], row["crashes"], row["error"]["signal"]) == ("failed", 1, "SIGKILL")
    assert run(conn, "pid")["result"] not in {victim.pid, sibling.pid}, "while its sibling is busy"
    sibling.tell("return unharmed")
    assert jobs.wait_final(conn, sibling.job)["result"] == "unharmed"


# ── what stops it ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["burn", "hang", "deaf", "stopped", "deaf, in C"])
def test_nothing_withstands_a_cancel(supervised: Supervised, conn: Conn, door: Door, state: str) -> None:
    victim = puppet(conn, door, max_attempts=5)
    if "deaf" in state:
        victim.ask("deafen")
    if state == "stopped":
        victim.signal(signal.SIGSTOP)
    elif state != "deaf":
        victim.ask("hang" if state == "hang" else "burn")

    assert jobs.cancel(conn, victim.job) == "requested"

    wait_gone(victim.pid)
    row = jobs.wait_final(conn, victim.job)
    assert (row["status"], row["attempt"], row["crashes"]) == ("canceled", 1, 0)


# ── what it leaves behind ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        *itertools.product(["deaf", "daemon", "group"], ["return", "raise", "crash", "cancel"]),
        *[("plain", "return"), ("plain", "crash"), ("chain", "crash"), ("chain", "cancel")],
    ],
)
def test_no_process_outlives_its_job(supervised: Supervised, conn: Conn, door: Door, shape: str, end: str) -> None:
    victim = puppet(conn, door)
    victim.ask(f"fork {shape}")
    left = below(victim.pid)
    assert left

    match end:
        case "cancel":
            victim.ask("burn")
            assert jobs.cancel(conn, victim.job) == "requested"
        case "crash":
            victim.ask("kill 11")
        case _:
            victim.tell(f"{end} something")

    for pid in (*left, victim.pid):
        wait_gone(pid)
    row = jobs.wait_final(conn, victim.job)
    ends = {"return": "completed", "raise": "failed", "crash": "failed", "cancel": "canceled"}
    assert row["status"] == ends[end]
    assert row["crashes"] == (end == "crash")
    assert run(conn, "pid")["result"] != victim.pid


def test_no_process_outlives_the_timeout_of_its_job(supervised: Supervised, conn: Conn, door: Door) -> None:
    limits = Jsonb({"timeout": 4.0})
    jobs.add(conn, handler="puppet", payload={"door": door.path}, max_attempts=1, limits=limits)
    victim = door.visitor()
    for shape in ("deaf", "daemon", "group", "plain", "chain"):
        victim.ask(f"fork {shape}")
    left = below(victim.pid)
    assert len(left) == 4 + CHAIN
    victim.ask("burn")

    for pid in (*left, victim.pid):
        wait_gone(pid)
    row = jobs.wait_final(conn, victim.job)
    assert (row["status"], row["error"]["kind"], row["crashes"]) == ("failed", "timeout", 0)
    assert run(conn, "pid")["result"] != victim.pid


def test_a_moving_target_is_caught(supervised: Supervised, conn: Conn, door: Door) -> None:
    known = {leak.pid for leak in leaks.tagged(supervised.tag)}
    victim = puppet(conn, door)
    victim.ask("fork runner")
    victim.tell("return at once")

    assert jobs.wait_final(conn, victim.job)["status"] == "completed"
    wait_gone(victim.pid)

    def new() -> list[leaks.Leak]:
        return [leak for leak in leaks.tagged(supervised.tag) if leak.pid not in known]

    try:
        wait_until(lambda: len(new()) <= 2)
    except NotInTimeError:
        pytest.fail(f"more than a new child or two: {new()}")


def test_processes_of_a_resource_live_as_long_as_its_child(supervised: Supervised, conn: Conn, door: Door) -> None:
    child, helper = run(conn, "use_daemon")["result"]
    assert tree.read_stat(helper) is not None
    visitors = {visitor.pid: visitor for visitor in (puppet(conn, door), puppet(conn, door))}
    visitors.pop(child).tell("return")  # now it alone is free
    assert run(conn, "use_daemon")["result"] == [child, helper]
    for visitor in visitors.values():
        visitor.tell("return")

    os.kill(child, signal.SIGKILL)

    wait_gone(helper)


@pytest.mark.parametrize("leak", ["leak_threads 40", "leak_descriptors 40"])
def test_a_child_that_leaks_is_replaced_and_its_result_counts(
    supervised: Supervised, conn: Conn, door: Door, leak: str
) -> None:
    pids: list[int] = []

    def leak_once() -> bool:
        """Have it leaked by whichever child; whether a child that leaked is gone."""
        victim = puppet(conn, door)
        victim.ask(leak)
        victim.tell("return leaked")
        pids.append(victim.pid)
        assert jobs.wait_final(conn, victim.job)["result"] == "leaked"
        return any(tree.read_stat(pid) is None for pid in pids)

    # Not after the first one: looking is put off a little after short jobs, and a child's first job may keep something.
    wait_until(leak_once, "a child replaced")


def test_standard_descriptors_are_put_back(supervised: Supervised, conn: Conn, door: Door) -> None:
    victim = puppet(conn, door)
    victim.ask("close_standard")
    victim.tell("return unheard")
    assert jobs.wait_final(conn, victim.job)["result"] == "unheard"
    while (following := puppet(conn, door)).pid != victim.pid:
        following.tell("return another child")
    following.ask("print heard again")
    following.tell("return heard")
    assert jobs.wait_final(conn, following.job)["result"] == "heard"
    assert supervised.event("output", job=following.job)["line"] == "heard again"


# ── what it returns and raises ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("NaN", "ResultNotSerialisable"),
        ("infinity", "ResultNotSerialisable"),
        ("object", "ResultNotSerialisable"),
        ("cycle", "ResultNotSerialisable"),
        ("depth", "ResultNotSerialisable"),
        ("size", "ResultTooLarge"),
    ],
)
def test_a_result_that_cannot_be_stored_fails_its_job_for_good(
    supervised: Supervised, conn: Conn, what: str, kind: str
) -> None:
    row = run(conn, "give", what=what)

    assert (row["status"], row["attempt"], row["crashes"]) == ("failed", 1, 0)
    assert (row["error"]["kind"], row["error"]["type"]) == ("bad_result", kind)


@pytest.mark.parametrize(
    ("what", "stored"), [("surrogate", "\N{REPLACEMENT CHARACTER}"), ("NUL", {"a\ufffdb": "c\ufffdd"})]
)
def test_of_text_that_postgres_refuses_the_rest_is_stored(
    supervised: Supervised, conn: Conn, what: str, stored: object
) -> None:
    row = run(conn, "give", what=what)

    assert (row["status"], row["attempt"], row["error"], row["result"]) == ("completed", 1, None, stored)


@pytest.mark.parametrize("what", EXCEPTIONS)
def test_any_exception_is_told_and_the_child_lives(supervised: Supervised, conn: Conn, what: str) -> None:
    row = run(conn, "throw", what=what, max_attempts=1)

    assert (row["status"], row["crashes"]) == ("failed", 0)
    error = row["error"]
    assert error["kind"] == "error"
    assert type(EXCEPTIONS[what]()).__name__ == error["type"].rpartition(".")[2]
    assert len(error["message"]) <= 4096
    assert 0 < len(error["traceback"]) <= 32 * 1024
    assert "throw" in error["traceback"]


def test_exceptions_end_no_child(supervised: Supervised, conn: Conn) -> None:
    before = {run(conn, "pid")["result"] for _ in range(8)}
    for what in EXCEPTIONS.keys() - {"memory"}:  # after which its child is of no use
        run(conn, "throw", what=what, max_attempts=1)
    run(conn, "exit_politely", max_attempts=1)
    after = {run(conn, "pid")["result"] for _ in range(8)}
    assert len(before | after) <= 2


# ── processes of its own ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["executor", "pool"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_handler_may_use_pools(supervised: Supervised, conn: Conn, kind: str, method: str) -> None:
    row = run(conn, "use_pool", kind=kind, method=method, max_attempts=1)

    assert (row["error"], row["result"]) == (None, [3, 2, 1, 0])


def test_a_handler_may_use_subprocesses(supervised: Supervised, conn: Conn) -> None:
    row = run(conn, "use_subprocess", max_attempts=1)

    assert (row["error"], row["result"]) == (None, str(-signal.SIGTERM))
