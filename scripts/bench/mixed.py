"""The row about short and long jobs in one queue."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Final

from scripts.bench import app, jobs, slots
from scripts.bench.figures import CPU_RATIO, Pair
from scripts.bench.stage import Stage

SHORT: Final = 0.001
LONG: Final = 0.500
SHARE_LONG: Final = 0.1


def mixed(stage: Stage, *, seconds: float) -> Callable[[], Pair]:
    """Nine of ten jobs take 1 ms, the tenth 500 ms, in an order that is the same each time.

    The reference is the same order given out without any loss: each job begins the instant that a slot is free, and takes
    what it takes on an undisturbed core. Beside it stands the share of that which a bare pool reaches.
    """
    short, long = app.steps_for(SHORT), app.steps_for(LONG)
    count = max(20, round(seconds * stage.procs / (SHARE_LONG * LONG + (1 - SHARE_LONG) * SHORT)))
    is_long = [number < count * SHARE_LONG for number in range(count)]
    random.Random(1).shuffle(is_long)
    ideal = schedule((LONG if each else SHORT for each in is_long), stage.procs)

    steps = [long if each else short for each in is_long]

    def measure() -> Pair:
        _, took = stage.run_jobs(app.timed.job(steps=each) for each in steps)
        spent = stage.cpu
        pool, bare = jobs.pool_seconds(stage.procs, steps, 1)
        done = slots.runs(stage, short_below=(short + long) / 2, handler="timed")
        own = schedule((run.end - run.begin for run in sorted(done, key=lambda run: run.begin)), stage.procs)
        extra = {
            "longest wait of a short job while a slot was free, ms": slots.longest_wait(done) * 1000,
            "ratio to the ideal schedule of the times that the handlers really took": own / took,
            "a bare pool's share of the ideal schedule": ideal / pool,
            "ratio to the bare pool": pool / took,
            f"{CPU_RATIO}, to the bare pool": bare / spent,
        }
        return Pair(count / took, count / ideal, ideal / took, extra)

    return measure


def schedule(durations: Iterable[float], count: int) -> float:
    """How long these jobs take in this order, if each begins as soon as one of the slots is free."""
    free = [0.0] * count
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
