"""The supervisor's voice: whether its statements notify.

Never with `--no-notify`. And not for a while once the server's queue of notifications was full: it refuses whoever
notifies then, at COMMIT, with all else that the transaction did. A notification is a hint, so what is to be written goes
without it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import psycopg
from psycopg.errors import ProgramLimitExceeded

from tasuki_mp import logs
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock

T = TypeVar("T")

SILENT_FOR: Final = 30.0
"""Seconds without notifications after their queue was full; each such time is warned of once."""


class Voice:
    """Asked for each statement that may notify."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._silent_until = float("-inf")

    async def send(self, call: Callable[[bool], Awaitable[T]]) -> T:
        """What `call(notify)` returns, which is called again without notifications if it may be these that are refused.

        Raises what `call` does; then it was refused without notifications too, or not because of them.
        """
        if not self._is_wanted or clock.now() < self._silent_until:
            return await call(False)
        try:
            return await call(True)
        except ProgramLimitExceeded as error:
            refused = error
        if is_queue_full(refused):
            self._fall_silent(refused)
        result = await call(False)
        self._fall_silent(refused)
        return result

    def _fall_silent(self, error: psycopg.Error) -> None:
        now = clock.now()
        if now >= self._silent_until:
            self._silent_until = now + SILENT_FOR
            logs.event(logging.WARNING, "notifications refused, none sent for now", error=in_words(error))


def is_queue_full(error: psycopg.Error) -> bool:
    """Whether there was no room for a notification. Data too large has the same SQLSTATE, and texts are translated."""
    return error.sqlstate == "54000" and (error.diag.source_file or "").endswith("async.c")
