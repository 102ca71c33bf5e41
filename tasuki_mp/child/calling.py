"""How a handler is run to its end: plainly, on an event loop, or for the jobs that it yields."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any, assert_never

from tasuki_mp.followups import FollowUps
from tasuki_mp.handlers import Handler
from tasuki_mp.job import Job


def runnable(handler: Handler[..., Any], followups: FollowUps) -> tuple[Callable[..., Any], bool]:
    """A function that runs the handler to its end, and whether it is a coroutine function.

    The jobs that a handler yields are follow-ups. One that returns nothing has them counted: `{"enqueued": 3}`.
    """
    match handler.kind:
        case "plain":
            return handler.function, False
        case "async":
            return handler.function, True
        case "generator":
            return partial(_exhaust, handler.function, followups), False
        case "async generator":
            return partial(_exhaust_async, handler.function, followups), True
        case _:
            assert_never(handler.kind)


def _exhaust(function: Callable[..., Generator[Job, None, Any]], followups: FollowUps, **arguments: Any) -> Any:
    before = followups.count
    with contextlib.closing(function(**arguments)) as jobs:
        while True:
            try:
                job = next(jobs)
            except StopIteration as end:
                return {"enqueued": followups.count - before} if end.value is None else end.value
            followups.add(job)


async def _exhaust_async(
    function: Callable[..., AsyncGenerator[Job, None]], followups: FollowUps, **arguments: Any
) -> dict[str, int]:
    before = followups.count
    async with contextlib.aclosing(function(**arguments)) as jobs:
        async for job in jobs:
            followups.add(job)
    return {"enqueued": followups.count - before}
