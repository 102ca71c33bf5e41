"""The row about notifications: producers that enqueue one by one while supervisors run."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import psycopg

from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness.runner import ROOT

PRODUCERS: Final = 4
SUPERVISORS: Final = 2
# What a committing transaction that notifies waits for is a heavyweight lock on "database 0"; its queue has LWLocks.
_WAITS: Final = b"""
SELECT count(*) FROM pg_stat_activity
 WHERE (wait_event_type = 'Lock' AND wait_event = 'object')
    OR (wait_event_type = 'LWLock' AND wait_event LIKE 'Notify%')
"""
SAMPLE_EVERY: Final = 0.01


def throughput_producer(stage: Stage, *, seconds: float) -> Callable[[], Pair]:
    """How many no-op jobs four producers enqueue a second, each one by one in transactions of their own.

    The reference has notifications off on both sides: the producers send the same statement without its notification, and
    the supervisors run with `--no-notify`.
    """

    def measure() -> Pair:
        told, waits, samples = _run(stage, seconds, is_told=True)
        silent, _, _ = _run(stage, seconds, is_told=False)
        extra = {
            "sessions waiting for a lock on NOTIFY, of all samples": float(waits),
            "samples": float(samples),
        }
        return Pair(told, silent, told / silent, extra)

    return measure


def _run(stage: Stage, seconds: float, *, is_told: bool) -> tuple[float, int, int]:
    """Jobs enqueued a second; sessions that were seen waiting, and in how many samples."""
    stage.clear()
    options = () if is_told else ("--no-notify",)
    with stage.waiting(*options, count=SUPERVISORS, procs=max(1, stage.procs // 2)), ExitStack() as stack:
        producers = [stack.enter_context(_producer(stage.dsn, seconds, is_told=is_told)) for _ in range(PRODUCERS)]
        for producer in producers:
            if _line(producer) != "ready":
                raise RuntimeError("a producer did not start")
        with _sampled(stage.dsn) as seen:
            for producer in producers:
                assert producer.stdin is not None
                producer.stdin.write("go\n")
                producer.stdin.flush()
            count = sum(int(_line(producer)) for producer in producers)
    return count / seconds, sum(seen), len(seen)


@contextmanager
def _producer(dsn: str, seconds: float, *, is_told: bool) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "scripts.bench.producer", dsn, str(seconds), "told" if is_told else "silent"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _line(producer: subprocess.Popen[str]) -> str:
    assert producer.stdout is not None
    return producer.stdout.readline().strip()


@contextmanager
def _sampled(dsn: str) -> Iterator[list[int]]:
    """Look again and again at how many sessions wait."""
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        with closing(psycopg.connect(dsn, autocommit=True)) as conn:
            while not ended.wait(SAMPLE_EVERY):
                row = conn.execute(_WAITS).fetchone()
                assert row is not None
                seen.append(row[0])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
