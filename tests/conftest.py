"""The database of the tests, and the tag that finds processes left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support import leaks
from tests.support.postgres import Postgres, session_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this session."""
    with session_server() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> Iterator[str]:
    """The name of a migrated database; `postgres.database(template)` makes copies of it."""
    name = postgres.template()
    yield name
    postgres.drop(name)


@pytest.fixture
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """The dsn of a fresh migrated database."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture
def empty_dsn(postgres: Postgres) -> Iterator[str]:
    """The dsn of a fresh database with nothing in it."""
    with postgres.database() as address:
        yield address


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection in autocommit to the database of `dsn`."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks every process that the test starts; the test fails if one of them outlives it."""
    value = leaks.new_tag()
    monkeypatch.setenv(leaks.VARIABLE, value)
    yield value
    leaks.assert_none(value)
