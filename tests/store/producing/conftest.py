"""One database for these tests, emptied after each; those that change more than rows ask for `own_database`."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tasuki_mp import Client
from tests.support.postgres import Postgres

_EMPTY = """
    DELETE FROM tasuki.job;
    DELETE FROM tasuki.job_archive;
    DELETE FROM tasuki.attempt;
    DELETE FROM tasuki.handler;
    DELETE FROM tasuki.unique_key;
    DELETE FROM tasuki.waiter;
    DROP TABLE IF EXISTS purchase;
"""


@pytest.fixture(scope="package")
def shared_dsn(postgres: Postgres, template: str) -> Iterator[str]:
    with postgres.database(template) as address:
        yield address


@pytest.fixture
def own_database() -> None:
    """The test's `dsn` is a database that nobody else uses."""


@pytest.fixture
def dsn(request: pytest.FixtureRequest, shared_dsn: str, postgres: Postgres, template: str) -> Iterator[str]:
    if "own_database" in request.fixturenames:
        with postgres.database(template) as address:
            yield address
        return
    yield shared_dsn
    with psycopg.connect(shared_dsn, autocommit=True) as conn:
        conn.execute(_EMPTY)


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as it:
        yield it
