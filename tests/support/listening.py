"""What a connection that LISTENs has heard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

_END = "that was all"


@contextmanager
def listening(dsn: str, channel: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that listens from now on; `heard` asks it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"LISTEN {channel}")
        yield conn


def heard(conn: psycopg.Connection[Any], channel: str) -> list[str]:
    """The payloads heard since the last call: a notification of its own marks the end, so this waits for no time."""
    conn.execute("SELECT pg_notify(%s, %s)", (channel, _END))
    payloads: list[str] = []
    # A generator of notifications that is left open keeps the connection locked.
    with closing(conn.notifies(timeout=60)) as notifications:
        for notification in notifications:
            if notification.payload == _END:
                return payloads
            payloads.append(notification.payload)
    raise AssertionError(f"{conn} does not listen to {channel}")
