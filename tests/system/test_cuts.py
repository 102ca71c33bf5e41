"""Connections cut at chosen protocol messages: nothing is lost, and nothing runs twice.

A short sweep; `python -m scripts.cuts` does it at every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import jobs
from tests.support.cuts import APPLICATIONS, Scene, scene, start_with
from tests.support.postgres import Postgres
from tests.support.proxy import Fault

Conn = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def stage(postgres: Postgres, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        postgres.database(template) as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
        scene(dsn, conn, tmp_path_factory.mktemp("cuts")) as set_up,
    ):
        set_up.play()
        yield set_up


@pytest.mark.parametrize("is_forwarded", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("application", "points"), [("lease", range(1, 38, 9)), ("finish", range(2, 22, 6)), ("listener", range(1, 3))]
)
def test_a_connection_is_cut_while_jobs_run(stage: Scene, application: str, points: range, is_forwarded: bool) -> None:
    # The listener may be away all the while that jobs run, after the last cut: then more of them run.
    is_awaited = application == "listener"
    happened = [
        stage.play_with(Fault(at=at, application=application, is_forwarded=is_forwarded), is_awaited=is_awaited)
        for at in points
    ]
    assert any(happened)


@pytest.mark.parametrize("application", APPLICATIONS)
def test_a_connection_is_cut_while_it_is_made(stage: Scene, application: str) -> None:
    for at in (1, 12):
        assert stage.play_with(Fault(at=at, application=application), is_cut_before=True, is_awaited=True)


def test_leases_whose_reply_was_lost_are_given_back(stage: Scene) -> None:
    kinds: set[str] = set()
    for _ in range(10):  # what is lost may be the answer to another question on that connection
        armed = stage.proxy.arm(Fault(application="lease", direction="to client", tag="D"))
        ids = stage.play()
        assert armed.message
        kinds = {attempt["kind"] for job_id in ids for attempt in jobs.history(stage.conn, job_id)}
        if "release" in kinds:
            break
    assert "release" in kinds
    stage.supervised.event("unknown leases given back")


def test_outcomes_whose_reply_was_lost_are_found_to_be_written(stage: Scene) -> None:
    armed = stage.proxy.arm(Fault(application="finish", direction="to client", tag="D"))

    stage.play()

    assert armed.message
    event = stage.supervised.event("outcome was written before, its reply was lost")
    assert event.keys() >= {"job", "handler", "attempt", "slot", "lease_no"}


@pytest.mark.parametrize("at", [1, 30, 60, 90])
def test_cut_at_its_start_it_starts_or_says_why_not(dsn: str, conn: Conn, at: int) -> None:
    assert start_with(Fault(at=at), dsn, conn)


@pytest.mark.parametrize("at", [1, 6])
def test_cut_at_its_end_it_says_goodbye_all_the_same(dsn: str, conn: Conn, tmp_path: Path, at: int) -> None:
    with scene(dsn, conn, tmp_path) as stage:
        stage.play()
        stage.proxy.arm(Fault(at=at))
