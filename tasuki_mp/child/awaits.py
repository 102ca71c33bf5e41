"""Where the tasks of an event loop wait: the chain of awaits of each, which no thread's stack shows.

Runs in a signal handler on the main thread, between two bytecodes of whatever the loop is doing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, Final

MOST_TASKS: Final = 20
MOST_FRAMES: Final = 50
LONGEST: Final = 16 * 1024
"""Characters of it all."""


def awaits(main: asyncio.Task[Any], coroutine: Coroutine[Any, Any, Any]) -> str:
    """The stacks of the loop's waiting tasks as `faulthandler` writes those of threads, the handler's own task first.

    `coroutine` is what `main` awaits for the handler. A task that runs now is left out: its frames are its thread's.
    """
    loop = main.get_loop()
    running = asyncio.current_task(loop)
    others = sorted(asyncio.all_tasks(loop) - {main, running}, key=lambda task: (len(task.get_name()), task.get_name()))
    parts = [] if main in {running, None} or main.done() else [_stack("The handler waits", coroutine)]
    parts.extend(_stack(f"Task {task.get_name()!r} waits", task.get_coro()) for task in others[:MOST_TASKS])
    if len(others) > MOST_TASKS:
        parts.append(f"and {len(others) - MOST_TASKS} more tasks\n")
    return "\n".join(parts)[:LONGEST]


def _stack(title: str, coroutine: object) -> str:
    frames = list(_frames(coroutine))
    lines = [
        f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}' for frame in frames
    ]
    return "\n".join([f"{title} (most recent await first):", *reversed(lines)]) + "\n"


def _frames(awaited: object) -> Iterator[FrameType]:
    """From the outermost coroutine to whatever it waits for in the end: native ones, generators, asynchronous generators."""
    for _ in range(MOST_FRAMES):
        for kind, waits_for in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{kind}_frame", None)
            if isinstance(frame, FrameType):
                yield frame
                awaited = getattr(awaited, waits_for)
                break
        else:
            return
