"""Statements that stop between their snapshot and their locks, so that another can commit exactly then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

import psycopg
import pytest

from tasuki_mp.store import work
from tests.support.waiting import wait_for_lock_wait

T = TypeVar("T")

_KEY = 424242
_SOURCE = b"from unnest("
_GATE = b"from (select pg_advisory_xact_lock_shared(424242)) as gate cross join unnest("


class Gate:
    """`run(call)` starts the call in a thread and returns once its statement stands at the gate."""

    def __init__(self, dsn: str, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._conn.execute("SELECT pg_advisory_lock(%s)", (_KEY,))

    def run(self, call: Callable[[], T]) -> Future[T]:
        future = self._pool.submit(call)
        wait_for_lock_wait(self._conn)
        return future

    def open(self) -> None:
        self._conn.close()


@contextmanager
def gated(dsn: str, monkeypatch: pytest.MonkeyPatch, name: str, *, module: ModuleType = work) -> Iterator[Gate]:
    """Give the statement `<module>.<name>` a gate. The first thing that each of them reads is what it was asked for."""
    text: bytes = getattr(module, name)
    assert _SOURCE in text
    monkeypatch.setattr(module, name, text.replace(_SOURCE, _GATE, 1))
    with ThreadPoolExecutor(1) as pool:
        gate = Gate(dsn, pool)
        try:
            yield gate
        finally:
            gate.open()
