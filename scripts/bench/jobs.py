"""Rows about running jobs: noop-pool, cpu1, cpu10, cpu100."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from scripts.bench import app
from scripts.bench.figures import CPU_RATIO, Pair
from scripts.bench.stage import Stage
from scripts.harness.runner import ROOT

CHUNK_SIZES: Final = (1, 10, 100)
TRIALS: Final = 3
"""Of each chunk size, to find the best one. The faster of two in each pair would be the luckier one on a noisy machine."""


def noop(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """Jobs that do nothing, enqueued before."""

    def measure() -> Pair:
        total, steady = stage.run_jobs(itertools.repeat(app.noop.job(), jobs))
        pool, _ = pool_seconds(stage.procs, [0] * jobs, 1)
        return Pair(
            jobs / total, jobs / pool, pool / total, {"steady jobs/s, first start to last finish": jobs / steady}
        )

    return measure


def cpu(stage: Stage, *, ms: float, seconds: float) -> Callable[[], Pair]:
    """Jobs of `ms` milliseconds of pure Python CPU work, as many as take that many seconds."""
    steps = app.steps_for(ms / 1000)
    jobs = round(seconds * stage.procs / (ms / 1000))
    sizes = [size for size in CHUNK_SIZES if size * stage.procs * 4 <= jobs] or CHUNK_SIZES[:1]
    sample = max(2 * stage.procs * sizes[-1], jobs // 10)
    trials = [{size: pool_seconds(stage.procs, [steps] * sample, size)[0] for size in sizes} for _ in range(TRIALS)]
    middles = {size: statistics.median(trial[size] for trial in trials) for size in sizes}
    best = min(sizes, key=lambda size: middles[size])

    def measure() -> Pair:
        _, ours = stage.run_jobs(itertools.repeat(app.burn.job(steps=steps), jobs))
        spent = stage.cpu
        chunked, bare = pool_seconds(stage.procs, [steps] * jobs, best)
        extra = {
            "best chunksize": float(best),
            "share of that with chunksize 1, in the trials": middles[best] / middles[1],
            "share of undisturbed cores": jobs * ms / 1000 / stage.procs / ours,
            "CPU time beyond the pool's for a job, all processes and the server's, µs": (spent - bare) / jobs * 1e6,
            CPU_RATIO: bare / spent,
        }
        return Pair(jobs / ours, jobs / chunked, chunked / ours, extra)

    return measure


def pool_seconds(procs: int, steps: Sequence[int], chunksize: int) -> tuple[float, float]:
    """How long the bare pool takes for jobs of so many steps each, and the CPU seconds of all its processes."""
    command = [sys.executable, "-m", "scripts.bench.pool", str(procs), str(chunksize)]
    lines = "\n".join(map(str, steps))
    done = subprocess.run(command, cwd=ROOT, check=True, input=lines, stdout=subprocess.PIPE, text=True)
    took, used = done.stdout.split()
    return float(took), float(used)
