"""How much waits in each queue, for `/metrics`: asked of the database at a scrape, on a connection of its own."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import look
from tasuki_mp.store.connect import connect
from tasuki_mp.supervisor import clock

ASK_EVERY: Final = 5.0
"""Seconds for which an answer serves every scrape: counting a large backlog is not free."""
ANSWER_WITHIN: Final = 5.0


class Depths:
    """Called in the HTTP server's threads."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._answer: list[look.QueueDepth] | None = None
        self._asked_at = float("-inf")
        self._turn = threading.Lock()

    def __call__(self) -> list[look.QueueDepth] | None:
        """The depths of all queues; None while the database does not answer in time."""
        with self._turn:
            if clock.now() - self._asked_at >= ASK_EVERY:
                self._answer = self._ask()
                self._asked_at = clock.now()
            return self._answer

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ask(self) -> list[look.QueueDepth] | None:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._dsn, name="metrics", statement_timeout=ANSWER_WITHIN)
            return look.queue_depths(self._connection)
        except psycopg.Error as error:
            logs.event(logging.WARNING, "queue depths unknown", error=str(error).strip().partition("\n")[0])
            return None
