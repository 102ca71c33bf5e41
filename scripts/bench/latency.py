"""The row about latency: from a producer's COMMIT to the first line of the handler, in an idle supervisor."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable

import psycopg

from scripts.bench import app
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.waiting import wait


def latency(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """Jobs one by one, against the round trip of a bare NOTIFY from one connection to another."""

    def measure() -> Pair:
        stage.clear()
        ours = _ours(stage, jobs)
        bare = _bare(stage.dsn, jobs)
        middle, reference = statistics.median(ours), statistics.median(bare)
        extra = {"ours, 99th percentile": _p99(ours), "reference, 99th percentile": _p99(bare)}
        return Pair(middle, reference, reference / middle, extra)

    return measure


def _ours(stage: Stage, jobs: int) -> list[float]:
    runner = stage.supervisor()
    try:
        warm = app.app.enqueue(app.stamp.job(), stage.conn)
        if not wait(lambda: warm.status(stage.conn) == "completed", 30):
            raise RuntimeError(f"the supervisor runs nothing; see {runner.log}")
        committed: dict[int, int] = {}
        for _ in range(jobs):
            _pause()
            with stage.conn.transaction():
                job_id = app.app.enqueue(app.stamp.job(), stage.conn).id
                begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            committed[job_id] = begin
        if not wait(lambda: _live(stage) == 0, 30):
            raise RuntimeError(f"jobs are left; see {runner.log}")
    finally:
        runner.close()
    rows = stage.conn.execute("SELECT id, result::text::bigint FROM tasuki.job_archive").fetchall()
    return [(stamp - committed[job_id]) / 1e6 for job_id, stamp in rows if job_id in committed]


def _live(stage: Stage) -> int:
    row = stage.conn.execute("SELECT count(*) FROM tasuki.job").fetchone()
    assert row is not None
    return int(row[0])


def _bare(dsn: str, count: int) -> list[float]:
    heard: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as listener, psycopg.connect(dsn, autocommit=True) as sender:
        listener.execute("LISTEN bench")
        for _ in range(count):
            _pause()
            begin = host.now()
            sender.execute("NOTIFY bench")
            if next(listener.notifies(stop_after=1, timeout=10), None) is None:
                raise RuntimeError("a notification did not arrive")
            heard.append((host.now() - begin) * 1000)
    return heard


def _pause() -> None:
    """Long enough for everybody to be idle again, and never in step with anything."""
    threading.Event().wait(random.uniform(0.03, 0.06))


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
