"""Two things that asyncio makes easy to get wrong: ending a task for sure, and waiting for an event for a while."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

_CANCEL_AGAIN: Final = 1.0
"""Seconds. Longer than an orderly end takes, so that it is not disturbed."""


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; raises what it raised.

    A single cancellation can get lost: Python 3.11's `wait_for` swallows one that comes together with the result, and
    psycopg uses it too.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN)
    with contextlib.suppress(asyncio.CancelledError):
        task.result()


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, but no longer than that; whether it is set. Never swallows a cancellation."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
