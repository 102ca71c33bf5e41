"""A child is as clean for the next job as for the first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from tests.support import jobs
from tests.support.dirty import EXACT, LAGGING
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]
APP = "tests.support.dirty:app"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """One database, one supervisor with one slot, for all tests here."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own_database(postgres: Postgres, template: str) -> Iterator[str]:
    """One that the other tests' supervisor does not work on."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def supervised(dsn: str) -> Iterator[Supervised]:
    with Supervised(dsn, "--poll", "20ms", app=APP, env={"LC_ALL": "C.UTF-8"}) as program:
        program.started()
        yield program
        assert program.stop() == 0


def run(conn: Conn, handler: str, **payload: Any) -> Any:
    row = jobs.wait_final(conn, jobs.add(conn, handler=handler, payload=payload))
    assert row["status"] == "completed", row["error"]
    return row["result"]


@pytest.mark.parametrize("what", EXACT)
def test_what_a_job_changes_is_put_back_exactly(supervised: Supervised, conn: Conn, what: str) -> None:
    before = run(conn, "look")
    assert run(conn, "change", what=what) == before["pid"], "in the same child"
    assert run(conn, "look") == before


@pytest.mark.parametrize("what", LAGGING)
def test_what_is_dear_to_look_at_is_put_back_or_the_child_is_replaced(
    supervised: Supervised, conn: Conn, what: str
) -> None:
    before = run(conn, "look")
    run(conn, "change", what=what)
    assert run(conn, "look")["found"] == before["found"]


def test_every_change_really_changes_something(supervised: Supervised, conn: Conn) -> None:
    same = [
        what
        for what in (*EXACT, *LAGGING)
        if not what.startswith("descriptors") and not run(conn, "changed", what=what)
    ]
    assert same == []


def test_a_handler_that_cannot_be_put_back_costs_the_child(supervised: Supervised, conn: Conn) -> None:
    pid = run(conn, "take_segv")
    assert run(conn, "look")["pid"] != pid


def test_a_child_whose_own_code_fails_dies_of_it_and_its_job_is_not_left_waiting(
    supervised: Supervised, conn: Conn
) -> None:
    pid = run(conn, "look")["pid"]
    row = jobs.wait_final(conn, jobs.add(conn, handler="break_the_loop", max_attempts=1))
    assert (row["status"], row["error"]["kind"], row["error"]["exit_code"]) == ("failed", "crash", 70)
    assert "no more files" in row["output"]
    assert run(conn, "look")["pid"] != pid


def test_what_a_resource_changes_stays(supervised: Supervised, conn: Conn) -> None:
    assert run(conn, "with_setting") == "yes"
    assert run(conn, "look")["found"]["environment"]["SET_BY_RESOURCE"] == "yes"


# ── private folders ───────────────────────────────────────────────────────────────────────────────────────────────────


def enter(conn: Conn, supervised: Supervised, end: str) -> tuple[int, Path]:
    """A job that fills its folder; its id, and where that is."""
    job = jobs.add(conn, handler="scratch", payload={"end": end}, max_attempts=1)
    return job, Path(supervised.event("output", job=job)["line"])


@pytest.mark.parametrize("end", ["return", "raise", "kill"])
def test_a_private_folder_is_gone_after_its_job_however_that_ends(supervised: Supervised, conn: Conn, end: str) -> None:
    job, folder = enter(conn, supervised, end)
    assert jobs.wait_final(conn, job)["status"] == ("completed" if end == "return" else "failed")
    wait_until(lambda: not folder.exists(), f"{folder} removed")
    if end == "kill":
        wait_until(lambda: not folder.parent.exists(), "nothing of that child left")
    assert folder.parent.parent.exists()
    assert Path(__file__).exists(), "links are not followed"


def test_private_folders_left_by_a_killed_supervisor_are_removed_by_the_next_one(
    own_database: str,
) -> None:
    # In a place of their own: any supervisor of the same user that starts meanwhile would remove them just as well.
    with (
        TemporaryDirectory(prefix="tasuki-mp-test-") as place,
        psycopg.connect(own_database, autocommit=True) as own_conn,
    ):
        env = {"TMPDIR": place}
        with Supervised(own_database, "--poll", "20ms", app=APP, env=env) as neighbour:
            neighbour.started()
            done, kept = enter(own_conn, neighbour, "return")
            jobs.wait_final(own_conn, done)
            neighbour.signal(signal.SIGSTOP)  # it must not take the job
            with Supervised(own_database, "--poll", "20ms", app=APP, env=env, leaves_behind=True) as killed:
                killed.started()
                _, folder = enter(own_conn, killed, "wait")
                killed.signal(signal.SIGKILL)
                killed.wait()
            assert folder.exists()
            with Supervised(own_database, "--poll", "20ms", app=APP, env=env) as other:
                other.started()
                wait_until(lambda: not folder.parent.parent.exists(), "its folder removed")
                assert kept.parent.parent.exists(), "a living supervisor's is left alone"
                assert other.stop() == 0
            neighbour.signal(signal.SIGCONT)
            assert neighbour.stop() == 0
