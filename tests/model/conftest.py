"""One audited database for all examples; a `World` empties it when it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.model import audit
from tests.model.world import World
from tests.support.holder import Holder

NewWorld = Callable[[], World]


@pytest.fixture
def new_world(dsn: str) -> Iterator[NewWorld]:
    """Begin anew, as often as wanted; one world at a time."""
    with psycopg.connect(dsn, autocommit=True) as conn, Holder(dsn) as one, Holder(dsn) as two:
        audit.install(conn)
        yield lambda: World(conn, (one, two))


@pytest.fixture
def world(new_world: NewWorld) -> World:
    return new_world()
