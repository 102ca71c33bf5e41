"""One database for all of these tests, emptied after each: they are many, and change rows only."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import Postgres

_EMPTY = """
    DELETE FROM tasuki.job;
    DELETE FROM tasuki.job_archive;
    DELETE FROM tasuki.attempt;
    DELETE FROM tasuki.checkpoint;
    DELETE FROM tasuki.handler;
    DELETE FROM tasuki.queue;
    DELETE FROM tasuki.supervisor;
    SELECT tasuki.ensure_partitions();
"""


@pytest.fixture(scope="package")
def shared_dsn(postgres: Postgres, template: str) -> Iterator[str]:
    with postgres.database(template) as address:
        yield address


@pytest.fixture
def dsn(shared_dsn: str) -> Iterator[str]:
    yield shared_dsn
    with psycopg.connect(shared_dsn, autocommit=True) as conn:
        conn.execute(_EMPTY)
