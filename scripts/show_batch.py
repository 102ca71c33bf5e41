"""A hundred thousand jobs of one batch that end on eight supervisors, and as many without a batch: does anybody wait?"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts import show_batch_app as app
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait

JOBS: Final = 100_000
SUPERVISORS: Final = 8
PAIRS: Final = 5
PATIENCE: Final = 900.0
SAMPLE_EVERY: Final = 0.01
LEAST: Final = 0.9
"""The share of the rate without a batch. A row that all of them write would leave a small part of it."""
ROW_LOCKS: Final = ["tuple", "transactionid"]
"""What a session waits for that wants a row which another one has changed."""

Promise = Callable[[str, str, object, bool], None]
Conn = psycopg.Connection[Any]


def batch(promise: Promise, *, jobs: int, supervisors: int) -> None:
    """Run them; tell `promise` what was wanted, what was seen, and whether it was kept."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    tag = host.new_tag()
    try:
        with (
            scratch_server() as server,
            psycopg.connect(server.dsn, autocommit=True) as conn,
            contextlib.ExitStack() as stack,
        ):
            for number in range(supervisors):
                runner = Runner(
                    *("--procs", "1"),
                    app="scripts.show_batch_app:app",
                    dsn=server.dsn,
                    log=folder / f"supervisor-{number}",
                    tag=tag,
                )
                stack.enter_context(closing(runner))
            wait(lambda: _number(conn, "SELECT count(*) FROM tasuki.supervisor") == supervisors, PATIENCE)
            _run(conn, server.dsn, jobs // 10, is_batch=False)  # the children and the caches are warm after it
            orders = itertools.islice(itertools.cycle([(True, False), (False, True)]), PAIRS)
            pairs = [
                {is_batch: _run(conn, server.dsn, jobs, is_batch=is_batch) for is_batch in order} for order in orders
            ]
            _judge(promise, pairs, jobs)
            deadlocks = _number(conn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            promise("deadlocks", "0", deadlocks, deadlocks == 0)
    finally:
        shutil.rmtree(folder)
    left = host.tagged(tag)
    promise("processes left behind", "0", len(left), not left)


@dataclass(frozen=True)
class Run:
    """One time all of the jobs. Times in seconds; `after` is from the last job's end to the batch's."""

    rate: float
    completed: int
    samples: int
    waits: Counter[tuple[str, bool]]
    """Samples in which sessions waited for a lock, by their application's name, and whether it was that of a row."""
    after: float = 0.0
    fired: tuple[str, ...] = ()


def _run(conn: Conn, dsn: str, jobs: int, *, is_batch: bool) -> Run:
    """All jobs are there, and all supervisors idle, when it begins."""
    conn.execute("TRUNCATE tasuki.job, tasuki.job_archive, tasuki.attempt, tasuki.batch")
    app.app.client.pause("default", conn=conn)
    made = (app.part.job(number) for number in range(jobs))
    if is_batch:
        follow_ups = {name: app.follow.job(name) for name in ("on_complete", "on_success", "on_failure")}
        app.app.enqueue_batch(made, conn, name="show", **follow_ups)
    else:
        app.app.enqueue_many(made, conn)
    conn.execute("VACUUM ANALYZE tasuki.job")
    conn.execute("CHECKPOINT")
    with _sampled(dsn) as sampler:
        app.app.client.resume("default", conn=conn)
        is_over = wait(lambda: _number(conn, "SELECT count(*) FROM tasuki.job") == 0, PATIENCE)
    if not is_over:
        raise SystemExit(f"not all jobs are done after {PATIENCE:g} seconds")
    row = conn.execute(
        """SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at))::float8, max(finished_at)
             FROM tasuki.job_archive WHERE handler = 'part' AND status = 'completed'"""
    ).fetchone()
    assert row is not None
    completed, seconds, last = row
    after, fired = 0.0, ()
    if is_batch:
        # What is fired at the end is inserted with it, so that there is a moment in which no job is live.
        wait(lambda: _number(conn, "SELECT count(*) FROM tasuki.batch WHERE ended_at IS NULL") == 0, PATIENCE)
        wait(lambda: _number(conn, "SELECT count(*) FROM tasuki.job") == 0, PATIENCE)
        ended = conn.execute("SELECT extract(epoch FROM ended_at - %s)::float8 FROM tasuki.batch", [last]).fetchone()
        after = 0.0 if ended is None else ended[0]
        rows = conn.execute("SELECT payload ->> 'which' FROM tasuki.job_archive WHERE handler = 'follow' ORDER BY 1")
        fired = tuple(which for (which,) in rows)
    return Run(completed / seconds, completed, sampler.samples, sampler.waits, after, fired)


class _Sampler:
    """Looks again and again at what sessions wait for, on a connection of its own."""

    def __init__(self, conn: Conn) -> None:
        self.samples = 0
        self.waits: Counter[tuple[str, bool]] = Counter()
        self._conn = conn
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY):
            rows = self._conn.execute(
                """SELECT DISTINCT application_name, wait_event = ANY(%s) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'""",
                [ROW_LOCKS],
            )
            self.waits.update((name.rpartition(" ")[2], is_row) for name, is_row in rows)
            self.samples += 1

    def stop(self) -> None:
        self._is_over.set()


@contextmanager
def _sampled(dsn: str) -> Iterator[_Sampler]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        sampler = _Sampler(conn)
        thread = threading.Thread(target=sampler.run)
        thread.start()
        try:
            yield sampler
        finally:
            sampler.stop()
            thread.join()


def _judge(promise: Promise, pairs: list[dict[bool, Run]], jobs: int) -> None:
    for is_batch in (True, False):
        what = "one batch" if is_batch else "no batch"
        runs = [pair[is_batch] for pair in pairs]
        completed = sum(run.completed for run in runs)
        promise(f"{what}: jobs completed", str(jobs * len(runs)), completed, completed == jobs * len(runs))
        rates = sorted(run.rate for run in runs)
        shown = f"{statistics.median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
        promise(f"{what}: jobs a second", "reported", shown, True)
        samples = sum(run.samples for run in runs)
        waits = sum((run.waits for run in runs), Counter[tuple[str, bool]]())
        finishing = waits.pop(("finish", True), 0)
        shown = f"{finishing} of {samples}"
        promise(f"{what}: samples in which a finish waits for a row", "0", shown, finishing == 0)
        others = ", ".join(
            f"{name} for {'a row' if is_row else 'room'} {n}" for (name, is_row), n in sorted(waits.items())
        )
        promise(f"{what}: samples of other waits", "reported", others or "none", True)
    ratios = sorted(pair[True].rate / pair[False].rate for pair in pairs)
    shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs)"
    promise("rate with a batch to that without", f">= {LEAST:g}", shown, statistics.median(ratios) >= LEAST)
    fired = [pair[True].fired for pair in pairs]
    is_once = all(each == ("on_complete", "on_success") for each in fired)
    promise("each batch fires on_complete and on_success once", "yes", "yes" if is_once else fired, is_once)
    longest = max(pair[True].after for pair in pairs)
    promise("from the last job's end to the batch's, longest", "<= 2 s", f"{longest:.3f} s", longest <= 2)


def _number(conn: Conn, query: str) -> int:
    row = conn.execute(query.encode()).fetchone()
    return 0 if row is None else int(row[0])
