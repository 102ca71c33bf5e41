"""The listener: receives notifications on a connection of its own and passes them on as hints.

Nothing depends on it. When its connection breaks it listens again, and then asks for one look everywhere, since it can't
know what it has missed. Behind a pooler that can't listen the poll alone does the work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.store.connect import connect_async
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import tasks

JOB_CHANNEL: Final = "tasuki_job"
CANCEL_CHANNEL: Final = "tasuki_cancel"
COMMAND_CHANNEL: Final = "tasuki_command"
SCHEDULE_CHANNEL: Final = "tasuki_schedule"
LONGEST_PAUSE: Final = 30.0
_MILLISECONDS: Final = re.compile("[0-9]{1,11}")
"""What is a number for `isdigit` need be none for `int`: there are digits like the small two of a square."""


class ListenerEvents(Protocol):
    """What the listener passes on; called on the loop."""

    def jobs_hinted(self, queue: str, look_back: float) -> None:
        """Jobs may be due in this queue, since up to `look_back` seconds."""

    def jobs_ahead(self, queue: str) -> None:
        """Jobs of this queue will be due before long."""

    def cancel_hinted(self) -> None:
        """Somebody asked to cancel a job that we run."""

    def command_hinted(self) -> None:
        """Somebody asked something about a job that we run."""

    def schedules_hinted(self) -> None:
        """Somebody has changed a schedule."""

    def notifications_missed(self) -> None:
        """We listen (again): whatever came before is unknown."""


class Listener:
    """LISTENs until stopped."""

    def __init__(self, dsn: str, *, owner: UUID, events: ListenerEvents) -> None:
        self._dsn = dsn
        self._owner = str(owner)
        self._events = events
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._listen_for_ever(), name="listener")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    async def _listen_for_ever(self) -> None:
        pause = 0.1
        while True:
            try:
                connection = await connect_async(self._dsn, name="listener")
                async with connection:
                    connection.add_notify_handler(lambda notify: self._pass_on(notify.channel, notify.payload))
                    for channel in (JOB_CHANNEL, CANCEL_CHANNEL, COMMAND_CHANNEL, SCHEDULE_CHANNEL):
                        await connection.execute(f"LISTEN {channel}".encode())
                    pause = 0.1
                    self._events.notifications_missed()
                    await self._hear(connection)
            except psycopg.Error as error:
                logs.event(logging.INFO, "not listening", error=in_words(error))
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Pass on what comes, as it comes, until the connection breaks: then raise what libpq says.

        `connection.notifies()` would do, but for the ten times a second that it wakes up with nothing to read.
        """
        loop, pgconn = asyncio.get_running_loop(), connection.pgconn
        broken: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                pgconn.consume_input()
                while notify := pgconn.notifies():
                    self._pass_on(notify.relname.decode(errors="replace"), notify.extra.decode(errors="replace"))
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                loop.remove_reader(fd)
                if not broken.done():  # else nobody waits any more
                    broken.set_exception(error)

        fd = pgconn.socket
        loop.add_reader(fd, read)
        try:
            await broken
        finally:
            loop.remove_reader(fd)

    def _pass_on(self, channel: str, payload: str) -> None:
        # Anybody may notify any channel, so whatever does not look like ours is ignored.
        match channel:
            case "tasuki_job":
                queue, _, back = payload.rpartition(" ")
                if queue and back == "ahead":
                    self._events.jobs_ahead(queue)
                elif queue and _MILLISECONDS.fullmatch(back):
                    self._events.jobs_hinted(queue, int(back) / 1000)
            case "tasuki_cancel" if payload == self._owner:
                self._events.cancel_hinted()
            case "tasuki_command" if payload == self._owner:
                self._events.command_hinted()
            case "tasuki_schedule":
                self._events.schedules_hinted()
            case _:
                pass
