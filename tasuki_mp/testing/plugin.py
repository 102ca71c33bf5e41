"""The pytest plugin: loaded wherever tasuki-mp is installed, so it imports nothing until a fixture is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tasuki_mp.testing.sandbox import Sandbox, Server

DSN_VARIABLE = "TASUKI_TEST_DSN"


@pytest.fixture(scope="session")
def tasuki_server() -> Iterator[Server]:
    """The PostgreSQL of this session: an embedded one, or the one that TASUKI_TEST_DSN names."""
    from tasuki_mp.testing import sandbox

    with sandbox.server(os.environ.get(DSN_VARIABLE) or None) as server:
        yield server


@pytest.fixture
def tasuki(tasuki_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A fresh database with the schema, which TASUKI_DSN names during the test, and what a test wants to do with it."""
    from tasuki_mp.testing.sandbox import Sandbox

    with tasuki_server.database() as dsn:
        monkeypatch.setenv("TASUKI_DSN", dsn)
        with Sandbox(dsn) as sandbox:
            yield sandbox
