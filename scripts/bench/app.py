"""The application of the benchmark. Its work is a fixed number of steps, so that what disturbs it shows in the time."""

from __future__ import annotations

import os
import time

from tasuki_mp import Tasuki

app = Tasuki()


def spin(steps: int) -> int:
    """Pure Python CPU work; the pool runs exactly this too."""
    total = 0
    for step in range(steps):
        total += step * step
    return total


def nothing(_: int) -> None:
    """The pool's no-op."""


@app.handler
def noop() -> None:
    pass


@app.handler
def burn(steps: int) -> None:
    spin(steps)


@app.handler
def nap(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 -- what it is for


@app.handler
def timed(steps: int) -> tuple[int, int, int]:
    """Its process, and when it began and ended (CLOCK_BOOTTIME, nanoseconds)."""
    begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    spin(steps)
    return os.getpid(), begin, time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@app.handler
def echo(text: str) -> str:
    return text


@app.handler
def carry(text: str) -> tuple[int, int, int, str]:
    """As `timed`, with something to bring back."""
    begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return os.getpid(), begin, time.clock_gettime_ns(time.CLOCK_BOOTTIME), text


@app.handler
def stamp() -> int:
    """CLOCK_BOOTTIME in nanoseconds at the first line of the handler."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def steps_for(seconds: float) -> int:
    """How many steps take that long on one undisturbed core of this machine."""
    probe = 20_000
    best = min(_timed(probe) for _ in range(50))
    return max(1, round(probe * seconds / best))


def _timed(steps: int) -> float:
    begin = time.perf_counter()
    spin(steps)
    return time.perf_counter() - begin
