"""A queue that may run three jobs at a time and one of each key, under eight supervisors: never more, and how fast."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts import show_app as jobs
from scripts.harness import host, journal
from scripts.harness.runner import Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait

SUPERVISORS: Final = 8
JOBS: Final = 600
KEYS: Final = 20
MOST: Final = 3
PATIENCE: Final = 300.0

Promise = Callable[[str, str, object, bool], None]


def limits(promise: Promise) -> None:
    """Run them; tell `promise` what was wanted, what was seen, and whether it was kept."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    tag = host.new_tag()
    try:
        with scratch_server() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
            for is_limited in (True, False):
                _run(conn, server.dsn, folder, tag, promise, is_limited=is_limited)
    finally:
        shutil.rmtree(folder)


def _run(
    conn: psycopg.Connection[Any], dsn: str, folder: Path, tag: str, promise: Promise, *, is_limited: bool
) -> None:
    conn.execute("TRUNCATE tasuki.job, tasuki.job_archive, tasuki.attempt")
    most = (MOST, 1) if is_limited else (None, None)
    conn.execute("SELECT tasuki.limit_queue('default', %s, %s)", most)
    jobs.app.enqueue_many((jobs.step.job(ms=5).key(f"tenant-{n % KEYS}") for n in range(JOBS)), conn)
    with contextlib.ExitStack() as stack:
        for number in range(SUPERVISORS):
            runner = Runner(
                *("--procs", "2", "--drain"),
                app="scripts.show_app:app",
                dsn=dsn,
                log=folder / f"log-{is_limited}-{number}",
                tag=tag,
                env=journal.environment(folder / "journal", f"supervisor-{number}"),
            )
            stack.enter_context(contextlib.closing(runner))
        sampled, sampled_key = 0, 0

        def sample() -> bool:
            nonlocal sampled, sampled_key
            counts = conn.execute(
                "SELECT key, count(*) FROM tasuki.job WHERE status = 'running' GROUP BY key"
            ).fetchall()
            sampled = max(sampled, sum(count for _, count in counts))
            sampled_key = max(sampled_key, max((count for _, count in counts), default=0))
            row = conn.execute("SELECT count(*) FROM tasuki.job").fetchone()
            return row is not None and row[0] == 0

        wait(sample, PATIENCE, every=0.02)
    rows = conn.execute(
        """SELECT key, extract(epoch FROM started_at)::float8, (usage ->> 'seconds')::float8,
                  extract(epoch FROM finished_at)::float8
             FROM tasuki.job_archive WHERE status = 'completed'"""
    ).fetchall()
    rate = len(rows) / max(0.001, max(row[3] for row in rows) - min(row[1] for row in rows)) if rows else 0.0
    what = "with limits" if is_limited else "without"
    promise(f"{what}: jobs completed", str(JOBS), len(rows), len(rows) == JOBS)
    promise(f"{what}: jobs a second", "reported", f"{rate:.0f}", True)
    if is_limited:
        everything = _most_at_once((start, start + seconds) for _, start, seconds, _ in rows)
        each = Counter(
            {
                key: _most_at_once((start, start + seconds) for k, start, seconds, _ in rows if k == key)
                for key in {row[0] for row in rows}
            }
        )
        promise("most handlers at a time, by their own times", f"<= {MOST}", everything, everything <= MOST)
        promise("most of one key at a time", "<= 1", max(each.values()), max(each.values()) <= 1)
        promise("most running rows in a sample", f"<= {MOST}", sampled, sampled <= MOST)
        promise("most running rows of one key in a sample", "<= 1", sampled_key, sampled_key <= 1)


def _most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """How many of these spans overlap at most."""
    edges = sorted(edge for start, end in spans for edge in ((start, 1), (end, -1)))
    edges.sort(key=lambda edge: (edge[0], edge[1]))
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most
