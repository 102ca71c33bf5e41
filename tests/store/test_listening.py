"""The listener over a real connection: what comes is passed on as it comes, and what fails on the way is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasuki_mp.supervisor.listener import Listener
from tests.support.outages import terminate
from tests.support.waiting import TIMEOUT

Conn = psycopg.Connection[Any]


class Events:
    """Queues of what is passed on; `jobs_hinted` raises if it is told to."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.error: Exception | None = None

    def jobs_hinted(self, queue: str, look_back: float) -> None:
        if self.error is not None:
            raise self.error
        self.heard.put_nowait(f"{queue} {look_back:g}")

    def jobs_ahead(self, queue: str) -> None:
        self.heard.put_nowait(f"{queue} ahead")

    def cancel_hinted(self) -> None:
        self.heard.put_nowait("cancel")

    def command_hinted(self) -> None:
        self.heard.put_nowait("command")

    def schedules_hinted(self) -> None:
        self.heard.put_nowait("schedules")

    def notifications_missed(self) -> None:
        self.heard.put_nowait("missed")


def listened(dsn: str, test: Callable[[Events, asyncio.Task[None]], Awaitable[None]]) -> None:
    """Run the test beside a listener that has begun to listen."""

    async def main() -> None:
        events = Events()
        listener = Listener(dsn, owner=uuid4(), events=events)
        task = listener.start()
        try:
            async with asyncio.timeout(TIMEOUT):
                assert await events.heard.get() == "missed"
                await test(events, task)
        finally:
            await listener.stop()

    asyncio.run(main())


def test_what_comes_together_is_passed_on_in_its_order(dsn: str, conn: Conn) -> None:
    async def test(events: Events, _: asyncio.Task[None]) -> None:
        for first in range(0, 600, 200):
            with conn.transaction():
                for number in range(first, first + 200):
                    conn.execute("SELECT pg_notify('tasuki_job', %s)", (f"q{number} {number}",))
            assert [await events.heard.get() for _ in range(200)] == [
                f"q{number} {number / 1000:g}" for number in range(first, first + 200)
            ]

    listened(dsn, test)


def test_with_its_backend_gone_it_listens_again(dsn: str, conn: Conn) -> None:
    async def test(events: Events, task: asyncio.Task[None]) -> None:
        for queue in ("first", "second"):
            assert terminate(conn, "listener") == 1
            assert await events.heard.get() == "missed"
            conn.execute("SELECT pg_notify('tasuki_job', %s)", (f"{queue} 0",))
            assert await events.heard.get() == f"{queue} 0"
        assert not task.done()

    listened(dsn, test)


def test_an_error_of_whoever_is_told_ends_it(dsn: str, conn: Conn) -> None:
    async def test(events: Events, task: asyncio.Task[None]) -> None:
        events.error = ZeroDivisionError("told")
        conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
        await asyncio.wait([task])
        with pytest.raises(ZeroDivisionError, match="told"):
            task.result()

    listened(dsn, test)


def test_it_waits_for_the_socket_alone(dsn: str) -> None:
    async def test(_: Events, task: asyncio.Task[None]) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        timers: list[asyncio.TimerHandle] = vars(asyncio.get_running_loop())["_scheduled"]
        assert len([timer for timer in timers if not timer.cancelled()]) == 1, "that of the test"

    listened(dsn, test)
