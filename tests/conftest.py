"""What all tests share: the database, the tag that finds processes left behind, the same start however it was made."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import psycopg
import pytest

from tests.support import leaks, turns
from tests.support.postgres import DSN_VARIABLE, Postgres, session_server

# A busy machine is no reason to fail; pytest's own timeout is for what hangs.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Whatever starts the suite, the programs that it starts can be interrupted: `nohup` and `&` have that ignored."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What measures time comes first, when there is least to wait for."""
    items.sort(key=lambda item: item.get_closest_marker("speed") is None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """With several workers, a test that measures time waits for the others' tests to end, and theirs for its end.

    So does one that counts on dead rows to go, where the workers have one server: each holds back what all others prune.
    """
    is_alone = item.get_closest_marker("speed") is not None
    if not is_alone and item.get_closest_marker("prunes") is not None:
        is_alone = DSN_VARIABLE in os.environ
    with turns.taken(alone=is_alone):
        return (yield)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this session."""
    with session_server() as server:
        yield server
        server.drop_templates()


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """The name of a migrated database; `postgres.database(template)` makes copies of it."""
    return postgres.template()


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """The dsn of a fresh migrated database."""
    with postgres.database(postgres.template()) as address:
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
