"""Two supervisors that the database can't tell from real ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.holder import Holder


@pytest.fixture
def one(dsn: str) -> Iterator[Holder]:
    with Holder(dsn) as holder:
        yield holder


@pytest.fixture
def two(dsn: str) -> Iterator[Holder]:
    with Holder(dsn) as holder:
        yield holder
