"""Two things that asyncio makes easy to get wrong: ending a task for sure, and waiting for an event for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

_CANCEL_AGAIN: Final = 1.0
"""Seconds. Longer than an orderly end takes, so that it is not disturbed."""


def watch(task: asyncio.Task[Any], failed: Callable[[BaseException], None]) -> None:
    """Call `failed` if the task ends by an exception: a part that has stopped working must not go unnoticed."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    task.add_done_callback(ended)


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
