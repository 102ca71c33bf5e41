"""What asyncio makes easy to get wrong: errors in tasks, ending a task for sure, waiting for an event for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

_CANCEL_AGAIN: Final = 1.0
"""Seconds. Longer than an orderly end takes, so that it is not disturbed."""

Failed = Callable[[BaseException], None]


def watch(task: asyncio.Task[Any], failed: Failed) -> None:
    """Call `failed` if the task ends by an exception: a part that has stopped working must not go unnoticed."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    task.add_done_callback(ended)


class Errands:
    """The short tasks of one part, such as a kill on its way. One that fails is told to `failed`, like a long-lived part.

    Nobody waits for a single one: what it was about would stay as it is for ever.
    """

    def __init__(self, failed: Failed) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Begin one."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        watch(task, self._failed)

    async def settled(self) -> None:
        """Wait until all have ended, those included that begin meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def end(self) -> None:
        """Cancel those that there are, and wait until they have ended."""
        for task in list(self._tasks):
            await end(task)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended. How it did is for whoever watches it.

    A single cancellation can get lost: Python 3.11's `wait_for` swallows one that comes together with the result, and
    psycopg uses it too.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN)


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, but no longer than that; whether it is set. Never swallows a cancellation."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
