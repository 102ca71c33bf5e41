"""The row about starting: from the command to the first job done, and from a child's death to the next child."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from scripts.bench import app
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.runner import ROOT, Runner
from scripts.harness.waiting import wait

MORE: Final = 0.2
DEATHS: Final = 10


def start(stage: Stage, *, deaths: int = DEATHS) -> Callable[[], Pair]:
    """`tasuki-mp run` with one job that waits; the reference imports the same and starts one child by a forkserver."""

    def measure() -> Pair:
        ours = _ours(stage)
        begin = host.now()
        command = [sys.executable, "-m", "scripts.bench.bare", "start"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        bare = float(done.stdout) - begin
        gaps = _replaced(stage, deaths)
        extra = {
            "beyond the reference, s": ours - bare,
            "a new child after a death, median ms": statistics.median(gaps) * 1000,
            "the slowest, ms": max(gaps) * 1000,
        }
        return Pair(ours, bare, (bare + MORE) / ours, extra)

    return measure


def _ours(stage: Stage) -> float:
    """Seconds from the start of the command until the job is in the archive, by the database's clock."""
    stage.clear()
    handle = app.app.enqueue(app.noop.job(), stage.conn)
    begin = time.time()
    runner = stage.supervisor()
    try:
        if not wait(lambda: handle.status(stage.conn) == "completed", 60):
            raise RuntimeError(f"the job has not run; see {runner.log}")
        stage.stop(runner)
    finally:
        runner.close()
    row = stage.conn.execute("SELECT extract(epoch FROM finished_at)::float8 FROM tasuki.job_archive").fetchone()
    assert row is not None
    return float(row[0]) - begin


def _replaced(stage: Stage, deaths: int) -> list[float]:
    """Seconds from the SIGKILL of a child until its slot has another that takes jobs."""
    gaps: list[float] = []
    runner = stage.supervisor(level="debug")
    try:
        for count in range(deaths):
            if not wait(lambda: len(_ready(runner)) == stage.procs + count, 60, every=0.02):  # noqa: B023 -- called at once
                raise RuntimeError(f"no new child; see {runner.log}")
            begin = time.time()
            os.kill(host.slots_of(runner.pid)[0], signal.SIGKILL)
            if not wait(lambda: len(_ready(runner)) > stage.procs + count, 60, every=0.02):  # noqa: B023 -- called at once
                raise RuntimeError(f"no new child; see {runner.log}")
            gaps.append(_ready(runner)[-1] - begin)
        stage.stop(runner)
    finally:
        runner.close()
    return gaps


def _ready(runner: Runner) -> list[float]:
    """When children became ready, so far; seconds of the wall clock."""
    events = runner.events()
    return [datetime.fromisoformat(each["time"]).timestamp() for each in events if each["event"] == "child ready"]
