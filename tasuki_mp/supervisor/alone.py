"""Finishes single jobs, each with all its follow-up jobs, on a connection of its own and in a thread.

For those whose follow-ups are too many for a batch, or have unique keys, on which a batch might have to wait.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID

import psycopg

from tasuki_mp.errors import DatabaseError
from tasuki_mp.job import JobRow
from tasuki_mp.store.alone import finish_alone
from tasuki_mp.store.connect import connect
from tasuki_mp.store.words import in_words
from tasuki_mp.store.work import Finished, FinishItem
from tasuki_mp.supervisor.link import FIRST_PAUSE, LONGEST_PAUSE, UnavailableError, cut, is_connection_lost

LOCK_TIMEOUT: Final = 2.0
"""Seconds to wait for an application's transaction that holds a unique key."""


class Alone:
    """One connection, opened when it is needed; one job at a time."""

    def __init__(self, dsn: str, *, owner: UUID) -> None:
        self._dsn = dsn
        self._owner = owner
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._pause = FIRST_PAUSE

    async def finish(self, item: FinishItem, followups: Callable[[], Iterable[JobRow]], *, notify: bool) -> Finished:
        """Write it down; see `finish_alone`.

        Raises UnavailableError when the connection failed, psycopg's error when the database refused, ConflictError, and
        what `followups` raises.
        """
        finished = await asyncio.to_thread(self._finish, item, followups, notify)
        self._pause = FIRST_PAUSE
        return finished

    async def pause(self) -> None:
        """Wait before another try, ever longer."""
        wait, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        await asyncio.sleep(wait * (0.5 + random.random()))

    def close(self) -> None:
        """Break the connection, so that whoever waits for it in the thread gets an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)

    def _finish(self, item: FinishItem, followups: Callable[[], Iterable[JobRow]], notify: bool) -> Finished:
        connection = self._connection
        try:
            if connection is None or connection.closed:
                connection = connect(self._dsn, name="finish alone", lock_timeout=LOCK_TIMEOUT)
                self._connection = connection
            return finish_alone(connection, owner=self._owner, item=item, followups=followups(), notify=notify)
        except (psycopg.Error, DatabaseError) as raised:
            error = raised.__cause__ if isinstance(raised, DatabaseError) else raised
            if not isinstance(error, psycopg.Error):
                raise
            if connection is None or connection.closed or is_connection_lost(error):
                self._connection = None
                if connection is not None:
                    connection.close()
                raise UnavailableError(in_words(error)) from error
            if error is raised:
                raise
            raise error from raised
