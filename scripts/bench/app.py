"""The handlers that are measured, and the same functions for the bare pool."""

from __future__ import annotations

import time

from tasuki_mp import Tasuki

app = Tasuki()


@app.handler
def noop() -> None:
    """Nothing: what a job costs."""


@app.handler
def burn(loops: int) -> None:
    """Pure Python that holds the GIL; the same number of loops is the same work wherever it runs."""
    spin(loops)


@app.handler
def when() -> float:
    """The instant of the handler's first line (CLOCK_BOOTTIME, seconds)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def spin(loops: int) -> None:
    total = 0
    for number in range(loops):
        total += number * number


def calibrated(milliseconds: float) -> int:
    """How many loops take that much CPU time here: the median of some tries."""
    loops, tries = 20_000, []
    for _ in range(15):
        started = time.thread_time()
        spin(loops)
        tries.append((time.thread_time() - started) / loops)
    return max(1, round(milliseconds / 1000 / sorted(tries)[len(tries) // 2]))
