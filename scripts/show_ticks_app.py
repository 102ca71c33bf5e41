"""The application of `scripts.show ticks`: fifty schedules that tick each second, and yield two jobs each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from tasuki_mp import Job, Tasuki

SCHEDULES: Final = 50
LEAVES: Final = 2
WORK: Final = 0.005
"""Seconds that a generator takes, so that kills find some at work."""

app = Tasuki()


@app.handler
def leaf(schedule: str, tick: str, number: int) -> None:
    """What a tick is for."""


def _declare(name: str) -> Callable[[datetime], Iterator[Job]]:
    def made(tick: datetime) -> Iterator[Job]:
        end = time.perf_counter() + WORK
        for number in range(LEAVES):
            while time.perf_counter() < end:
                pass
            yield leaf.job(name, tick.isoformat(), number)

    handler = app.handler(name=name)(made)
    return app.schedule("* * * * * *")(handler)


ticking = [_declare(f"each-second-{number:02}") for number in range(SCHEDULES)]
