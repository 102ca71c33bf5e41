"""Whether a supervisor's statements notify, and what it does when they can't."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors as pg

from tasuki_mp.supervisor import clock, voice
from tasuki_mp.supervisor.voice import SILENT_FOR, Voice


class Server:
    """Takes or refuses what is sent; `asked` are the tries, each whether it notifies."""

    def __init__(self, refuses: Callable[[bool], psycopg.Error | None]) -> None:
        self.asked: list[bool] = []
        self._refuses = refuses

    async def call(self, notify: bool) -> str:
        self.asked.append(notify)
        if (error := self._refuses(notify)) is not None:
            raise error
        return "done"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: time[0])
    return time


def send(own: Voice, server: Server) -> str:
    return asyncio.run(own.send(server.call))


def full(notify: bool) -> psycopg.Error | None:
    return pg.ProgramLimitExceeded("zu viele Benachrichtigungen in NOTIFY-Schlange") if notify else None


def too_large(_: bool) -> psycopg.Error:
    return pg.ProgramLimitExceeded("index row size 9000 exceeds btree maximum 2704")


def test_a_voice_that_is_not_wanted_never_notifies() -> None:
    server = Server(lambda _: None)
    assert send(Voice(is_wanted=False), server) == "done"
    assert server.asked == [False]


def test_after_notifications_were_refused_it_is_silent_for_a_while(now: list[float]) -> None:
    own, server = Voice(is_wanted=True), Server(full)
    assert send(own, server) == "done"
    assert send(own, server) == "done"
    assert server.asked == [True, False, False]
    now[0] += SILENT_FOR
    assert send(own, server) == "done"
    assert server.asked[3:] == [True, False]


def test_what_is_refused_without_notifications_too_is_the_caller_s_to_handle(now: list[float]) -> None:
    own, server = Voice(is_wanted=True), Server(too_large)
    for _ in range(2):
        with pytest.raises(pg.ProgramLimitExceeded, match="index row size"):
            send(own, server)
    assert server.asked == [True, False] * 2, "notifications are not to blame"


@pytest.mark.parametrize(
    "error", [pg.DeadlockDetected(), pg.DiskFull(), pg.StatementTooComplex(), psycopg.OperationalError("lost")]
)
def test_other_errors_are_no_reason_to_send_again(error: psycopg.Error) -> None:
    server = Server(lambda _: error)
    with pytest.raises(type(error)):
        send(Voice(is_wanted=True), server)
    assert server.asked == [True]


def test_data_that_is_too_large_is_no_full_queue() -> None:
    assert not voice.is_queue_full(too_large(True))
    assert not voice.is_queue_full(pg.DiskFull())
