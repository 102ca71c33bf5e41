"""How often notifications that anybody may send make the supervisor ask the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.hints import BURST, PER_SECOND, Hints
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import Link
from tasuki_mp.supervisor.scheduler import Scheduler
from tasuki_mp.supervisor.tokens import Tokens
from tasuki_mp.supervisor.voice import Voice


class Timer:
    """What `call_later` returns."""

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True


class Loop:
    """A loop whose time passes when the test says so; it is the clock as well."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay > 0
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [timer for timer in self.timers if not timer.is_canceled and timer.at <= until]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            first.callback()
        self.now = until


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(clock, "now", lambda: loop.now)
    return loop


def test_a_hint_is_reacted_to_at_once_and_so_are_some_more(loop: Loop) -> None:
    reactions: list[float] = []
    hints = Hints(lambda: reactions.append(loop.now))
    for _ in range(BURST):
        hints.hint()
        loop.pass_by(0.001)
    assert len(reactions) == BURST
    assert reactions[0] == 1000.0
    loop.pass_by(60)
    assert len(reactions) == BURST, "nothing is left to make up for"
    hints.hint()
    assert reactions[-1] == loop.now


def test_a_flood_costs_so_many_reactions_a_second_and_the_last_hint_gets_one(loop: Loop) -> None:
    reactions: list[float] = []
    hints = Hints(lambda: reactions.append(loop.now))
    last = 0.0
    for _ in range(10_000):
        last = loop.now
        hints.hint()
        loop.pass_by(0.001)
    assert BURST + 9 * PER_SECOND <= len(reactions) <= BURST + 11 * PER_SECOND
    loop.pass_by(60)
    assert last <= reactions[-1] <= last + 1 / PER_SECOND + 0.01
    assert len([at for at in reactions if at > last]) <= 1


def test_a_hint_that_waits_is_dropped_at_the_end(loop: Loop) -> None:
    reactions: list[float] = []
    hints = Hints(lambda: reactions.append(loop.now))
    for _ in range(BURST + 1):
        hints.hint()
    hints.stop()
    hints.stop()
    loop.pass_by(60)
    assert len(reactions) == BURST


def test_how_long_it_takes_until_there_is_a_token() -> None:
    tokens = Tokens(burst=2, per_second=4)
    assert tokens.wait(10.0) == 0
    assert tokens.take(10.0) and tokens.take(10.0) and not tokens.take(10.0)
    assert tokens.wait(10.0) == pytest.approx(0.25)
    assert tokens.wait(10.2) == pytest.approx(0.05)
    assert tokens.wait(11.0) == 0
    assert tokens.take(10.26)


def test_a_change_that_is_told_of_while_schedules_are_read_is_read() -> None:
    looked = asyncio.Semaphore(0)
    looks = 0

    class Changing(Link):
        """The first time that schedules are read, one changes just after."""

        def __init__(self) -> None:
            super().__init__("", name="", timeout=1)

        async def call(self, *_: Any, **__: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks == 1:
                scheduler.hint()
            looked.release()
            return datetime.now(UTC), []

    async def scenario() -> None:
        nonlocal scheduler
        link = Changing()
        scheduler = Scheduler(
            link, link, owner=uuid4(), infos=[], handlers=[], voice=Voice(is_wanted=True), hooks=Hooks()
        )
        scheduler.start()
        async with asyncio.timeout(20):  # without a hint, it would look again in thirty seconds
            await looked.acquire()
            await looked.acquire()
        await scheduler.stop()

    scheduler: Scheduler
    asyncio.run(scenario())
