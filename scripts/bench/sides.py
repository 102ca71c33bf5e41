"""The two sides of each comparison: what the program does, and the bare thing that it is compared to."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from scripts.bench import app as handlers
from scripts.harness import host
from scripts.harness.runner import Runner
from tasuki_mp.client import Client
from tasuki_mp.job import Job

APP: Final = "scripts.bench.app:app"
DEADLINE: Final = 600.0


class Run(NamedTuple):
    """One run of the program: seconds from the start of the command, and from the first job's start, to the last finish."""

    total: float
    steady: float


def run_jobs(dsn: str, folder: Path, job: Job, count: int, procs: int) -> Run:
    """Enqueue that many jobs, then start a supervisor that drains them, and read from the archive how long it took."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate tasuki.job, tasuki.job_archive, tasuki.attempt")
        with Client(dsn) as client:
            client.enqueue_many(job for _ in range(count))
        conn.execute("vacuum (analyze) tasuki.job")
        conn.execute("checkpoint")
        started = _database_clock(conn)
        runner = Runner(
            "--procs", str(procs), "--drain=due", app=APP, dsn=dsn, log=folder / "run.log", tag=host.new_tag()
        )
        try:
            if runner.wait(DEADLINE) != 0:
                raise RuntimeError(f"the supervisor did not end well, see {folder / 'run.log'}")
        finally:
            runner.close()
        row = conn.execute(
            "select count(*), extract(epoch from min(started_at)), extract(epoch from max(finished_at)) "
            "from tasuki.job_archive where status = 'completed'"
        ).fetchone()
    if row is None or row[0] != count:
        raise RuntimeError(f"{count} jobs were enqueued and {row and row[0]} completed")
    first, last = float(row[1]), float(row[2])
    return Run(last - started, last - first)


def run_pool(loops: int, count: int, procs: int, chunksize: int) -> float:
    """The same work in a bare ProcessPoolExecutor.map, its processes started before; seconds."""
    with ProcessPoolExecutor(procs) as pool:
        list(pool.map(handlers.spin, [1] * procs * 4))
        started = time.perf_counter()
        for _ in pool.map(handlers.spin, [loops] * count, chunksize=chunksize):
            pass
        return time.perf_counter() - started


def enqueue_many(dsn: str, count: int) -> float:
    """Seconds for one `enqueue_many` of a generator."""
    _empty(dsn)
    job = handlers.burn.job(1)
    with Client(dsn) as client:
        client.enqueue(job)  # the connection stands before the clock runs
        started = time.perf_counter()
        client.enqueue_many(job for _ in range(count))
        return time.perf_counter() - started


def bare_copy(dsn: str, count: int) -> float:
    """Seconds for a bare binary COPY of the same rows into the same table, in one transaction."""
    _empty(dsn)
    row = handlers.burn.job(1).row
    columns = "handler, queue, payload, priority, max_attempts"
    with psycopg.connect(dsn) as conn, conn.cursor() as cursor:
        started = time.perf_counter()
        with cursor.copy(f"copy tasuki.job ({columns}) from stdin (format binary)") as copy:
            copy.set_types(["text", "text", "jsonb", "int2", "int4"])
            payload = Jsonb({"loops": 1})
            for _ in range(count):
                copy.write_row((row.handler, row.queue, payload, row.priority, row.max_attempts))
        conn.commit()
        return time.perf_counter() - started


def enqueue_one(dsn: str, count: int) -> float:
    """Median seconds of one `enqueue`, inside a transaction of the caller's."""
    _empty(dsn)
    job = handlers.noop.job()
    with psycopg.connect(dsn) as conn, Client(dsn) as client:
        return _median(lambda: client.enqueue(job, conn), count)


def bare_insert(dsn: str, count: int) -> float:
    """Median seconds of one bare INSERT, in the same way."""
    _empty(dsn)
    query = "insert into tasuki.job (handler, queue, payload) values (%s, %s, %s::jsonb) returning id"
    with psycopg.connect(dsn) as conn, conn.cursor() as cursor:
        return _median(lambda: cursor.execute(query, ("noop", "default", "{}")).fetchone(), count)


def latencies(dsn: str, folder: Path, count: int, procs: int) -> list[float]:
    """Seconds from the commit of each of some jobs to the first line of its handler, an idle supervisor beside."""
    _empty(dsn)
    committed: dict[int, float] = {}
    runner = Runner("--procs", str(procs), app=APP, dsn=dsn, log=folder / "latency.log", tag=host.new_tag())
    try:
        with Client(dsn) as client, psycopg.connect(dsn, autocommit=True) as conn:
            for number in range(count + 10):
                handle = client.enqueue(handlers.when.job())
                if number >= 10:  # the first ones wait for the supervisor to start
                    committed[handle.id] = host.now()
                _await_done(conn, handle.id)
            rows = conn.execute("select id, result from tasuki.job_archive").fetchall()
    finally:
        runner.close()
    return [float(result) - committed[id] for id, result in rows if id in committed]


def notify_round_trips(dsn: str, count: int) -> list[float]:
    """Seconds of a bare NOTIFY, from its sending to its receipt on another connection."""
    with psycopg.connect(dsn, autocommit=True) as listener, psycopg.connect(dsn, autocommit=True) as teller:
        listener.execute("listen bench")
        waits = []
        for _ in range(count):
            told = host.now()
            teller.execute("notify bench")
            next(listener.notifies(stop_after=1))
            waits.append(host.now() - told)
    return waits


def _await_done(conn: psycopg.Connection[tuple[object, ...]], id: int) -> None:
    """Wait until the job is in the archive, and a little longer, so that jobs come one by one to an idle supervisor."""
    deadline = time.monotonic() + 60
    while conn.execute("select 1 from tasuki.job_archive where id = %s", [id]).fetchone() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"job {id} was not run within a minute")
        conn.execute("select pg_sleep(0.01)")
    conn.execute("select pg_sleep(%s)", [0.02 + 0.03 * random.random()])


def _median(work: Callable[[], object], count: int) -> float:
    times = list(_times(work, count + 50))[50:]
    return statistics.median(times)


def _times(work: Callable[[], object], count: int) -> Iterator[float]:
    for _ in range(count):
        started = time.perf_counter()
        work()
        yield time.perf_counter() - started


def _empty(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate tasuki.job, tasuki.job_archive, tasuki.attempt")
        conn.execute("checkpoint")


def _database_clock(conn: psycopg.Connection[tuple[object, ...]]) -> float:
    row = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(str(row[0]))
