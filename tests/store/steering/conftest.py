"""A client, and how a change is asked for in both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasuki_mp import AsyncClient, Changed, Client

Steer = Callable[..., Changed]


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as it:
        yield it


@pytest.fixture(params=["Client", "AsyncClient"])
def steer(request: pytest.FixtureRequest, dsn: str) -> Steer:
    """`steer("retry", ids, again=True)`, by a client of either kind."""

    def by_client(method: str, *args: Any, **kwargs: Any) -> Changed:
        with Client(dsn) as client:
            changed: Changed = getattr(client, method)(*args, **kwargs)
            return changed

    def by_async_client(method: str, *args: Any, **kwargs: Any) -> Changed:
        async def run() -> Changed:
            async with AsyncClient(dsn) as client:
                changed: Changed = await getattr(client, method)(*args, **kwargs)
                return changed

        return asyncio.run(run())

    return {"Client": by_client, "AsyncClient": by_async_client}[request.param]
