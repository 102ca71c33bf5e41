"""A job's native thread pools get the units that the job has, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support import jobs
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres

Conn = psycopg.Connection[Any]
APP = "tests.support.native:app"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """One database, one supervisor, for all tests here."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module", autouse=True)
def supervised(dsn: str) -> Iterator[Supervised]:
    with Supervised(dsn, "--poll", "20ms", app=APP, procs=2) as program:
        program.started()
        yield program
        assert program.stop() == 0


def run(conn: Conn, handler: str, *, cpus: int = 1) -> Any:
    limits = {"limits": Jsonb({"cpus": cpus})} if cpus > 1 else {}
    row = jobs.wait_final(conn, jobs.add(conn, handler=handler, **limits))
    assert row["status"] == "completed", row["error"]
    return row["result"]


def threads(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["cpus"], found["pools"], found["numexpr"], found["environment"]


def test_every_pool_has_as_many_threads_as_its_job_has_units(conn: Conn) -> None:
    for cpus in (1, 2, 1, 2, 1, 1):
        assert threads(run(conn, "look", cpus=cpus)) == (cpus, [cpus], cpus, [str(cpus)])


def test_a_failure_takes_its_threads_along(conn: Conn) -> None:
    error = jobs.wait_final(conn, jobs.add(conn, handler="fail", max_attempts=1))["error"]
    assert error["message"] == "as told"
    for _ in range(4):
        assert threads(run(conn, "look")) == (1, [1], 1, ["1"])


def test_a_library_that_reads_its_threads_once_gets_a_child_of_its_own_for_each_number(conn: Conn) -> None:
    ones = {run(conn, "stand")["pid"] for _ in range(6)}
    big = run(conn, "stand", cpus=2)
    assert big["polars"] == "2"
    assert big["pid"] not in ones, "it had been imported there with one thread"
    after = [run(conn, "stand") for _ in range(6)]
    assert {found["polars"] for found in after} == {"1"}
    assert big["pid"] not in {found["pid"] for found in after}, "it would have had two threads there"
