"""Commands: answers what people ask about single running jobs, on whichever host the job is.

A notification brings it to look at `tasuki.command`; where none comes, it looks every few seconds. Each kind of question is
answered by one function; a slow answer holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import commands
from tasuki_mp.store.commands import Command, Reply
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.link import Link, UnavailableError

LOOK_EVERY: Final = 5.0
"""Seconds between looks without a notification."""
BETWEEN_LOOKS: Final = 0.02
"""Seconds between two looks at least: anybody may notify."""
FORGET_EVERY: Final = 60.0
FAREWELL_FOR: Final = 1.0
"""Seconds to tell those whose questions stay unanswered."""

Answer = Callable[[Command], Awaitable[Any]]
"""Returns what JSON can say. Raises CannotAnswerError."""


class CannotAnswerError(Exception):
    """There is no answer; the text says why, and goes to whoever asked."""


class Commands:
    """Looks and answers until stopped. `kinds` has a function for each kind of question."""

    def __init__(self, link: Link, *, owner: UUID, kinds: Mapping[str, Answer]) -> None:
        self._link = link
        self._owner = owner
        self._kinds = kinds
        self._hinted = asyncio.Event()
        self._forgot_at = clock.now()
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._look_for_ever(), name="commands")
        return self._task

    async def stop(self) -> None:
        """Look no more; who still waits for an answer is told so. May be called twice."""
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None
        unanswered = dict(self._answering)
        for answering in unanswered.values():
            await tasks.end(answering)
        if unanswered:
            farewell = Reply(error="its supervisor has just stopped")
            try:
                async with asyncio.timeout(FAREWELL_FOR):
                    await self._link.call(commands.answer, [(id, farewell) for id in unanswered])
            except (UnavailableError, psycopg.Error, TimeoutError) as error:
                _report(error)

    def hint(self) -> None:
        """Somebody may have asked something."""
        self._hinted.set()

    async def _look_for_ever(self) -> None:
        while True:
            await tasks.wait_at_most(self._hinted, LOOK_EVERY)
            self._hinted.clear()
            try:
                for command in await self._link.call(commands.open_commands, self._owner):
                    if command.id not in self._answering:
                        self._answering[command.id] = asyncio.create_task(self._answer(command))
                if clock.now() - self._forgot_at >= FORGET_EVERY:
                    self._forgot_at = clock.now()
                    await self._link.call(commands.forget)
            except (UnavailableError, psycopg.Error) as error:
                _report(error)
            await asyncio.sleep(BETWEEN_LOOKS)

    async def _answer(self, command: Command) -> None:
        try:
            reply = await self._reply(command)
            await self._link.call(commands.answer, [(command.id, reply)])
        except (UnavailableError, psycopg.Error) as error:
            _report(error)
        finally:
            del self._answering[command.id]

    async def _reply(self, command: Command) -> Reply:
        answer = self._kinds.get(command.kind)
        if answer is None:
            return Reply(error=f"its supervisor is of a release that knows no {command.kind!r}")
        try:
            return Reply(value=await answer(command))
        except CannotAnswerError as error:
            return Reply(error=str(error))


def _report(error: Exception) -> None:
    logs.event(logging.INFO, "commands wait", error=in_words(error))
