"""Rows about enqueueing: enqueue-many, enqueue-one, enqueue-one in the caller's transaction."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg

from scripts.bench import app
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from tasuki_mp import Client
from tasuki_mp.job import Job
from tasuki_mp.store import bulk, copying
from tasuki_mp.store.bulk import Intake

_INSERT: Final = b"""
INSERT INTO tasuki.job (queue, handler, payload, priority, max_attempts) VALUES (%s, %s, %s::jsonb, %s, %s) RETURNING id
"""
_ONE_BY_ONE: Final = 500


def many(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """Jobs out of a generator, against sending the same bytes as a COPY."""

    def measure() -> Pair:
        stage.clear()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            ours, cpu, grown = fresh.submit(_many, stage.dsn, jobs).result()
        stage.clear()
        data = _copy_data(stage.conn, jobs)
        server = host.cpu_seconds(stage.conn.info.backend_pid)
        begin = time.perf_counter()
        with stage.conn.transaction():
            for chunk in data:
                with stage.conn.cursor().copy(copying.COPY) as copy:
                    copy.write(chunk)
        bare = time.perf_counter() - begin
        server = host.cpu_seconds(stage.conn.info.backend_pid) - server
        del data
        stage.clear()
        begin = time.perf_counter()
        with stage.conn.transaction():
            app.app.enqueue_many(_generated(jobs), stage.conn)
        inside = time.perf_counter() - begin
        extra = {
            "memory grown, MiB": grown,
            "ratio inside the caller's transaction": bare / inside,
            "our CPU time for a job, µs": cpu / jobs * 1e6,
            "the server's for the bare COPY, µs": server / jobs * 1e6,
        }
        return Pair(jobs / ours, jobs / bare, bare / ours, extra)

    return measure


def _many(dsn: str, jobs: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and MiB by which memory grew: in a process of its own, whose peak nothing else has raised."""
    with closing(Client(dsn)) as client:
        client.enqueue_many(_generated(1))
        memory = _peak()
        begin, cpu = time.perf_counter(), time.process_time()
        client.enqueue_many(_generated(jobs))
        return time.perf_counter() - begin, time.process_time() - cpu, _peak() - memory


def _generated(jobs: int) -> Iterator[Job]:
    return (app.burn.job(steps=number) for number in range(jobs))


def _copy_data(conn: psycopg.Connection[tuple[object, ...]], jobs: int) -> list[bytes]:
    """The very bytes that the client sends, made beforehand."""
    intake = Intake(job.row for job in _generated(jobs))
    copied = copying.Copied()
    chunks = []
    chunk = intake.first
    while chunk:
        draw = bulk.draw_ids(conn, len(chunk), intake)
        chunks.append(b"".join(copied.pieces(iter(chunk), draw)))
        chunk = copying.chunk_of(intake.rows)
    return chunks


def _peak() -> float:
    """MiB. Not `ru_maxrss`, which counts the process that this one was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def one(stage: Stage) -> Callable[[], Pair]:
    """One job at a time on the client's own connection: medians of a block of each, in microseconds."""

    def measure() -> Pair:
        stage.clear()
        with closing(Client(stage.dsn)) as client:
            client.enqueue(app.burn.job(steps=0))
            ours, bare = _blocks(stage.conn, client.enqueue)
        given, _ = _blocks(stage.conn, lambda job: app.app.enqueue(job, stage.conn))
        return Pair(ours, bare, bare / ours, {"on a connection in autocommit that is given, µs": given})

    return measure


def inside(stage: Stage) -> Callable[[], Pair]:
    """The same inside the caller's transaction."""

    def measure() -> Pair:
        stage.clear()
        with stage.conn.transaction():
            ours, bare = _blocks(stage.conn, lambda job: app.app.enqueue(job, stage.conn))
        return Pair(ours, bare, bare / ours)

    return measure


def _blocks(conn: psycopg.Connection[tuple[object, ...]], enqueue: Callable[[Job], object]) -> tuple[float, float]:
    ours, bare = [], []
    for number in range(_ONE_BY_ONE):
        begin = time.perf_counter()
        enqueue(app.burn.job(steps=number))
        middle = time.perf_counter()
        conn.execute(_INSERT, ("default", "burn", f'{{"steps":{number}}}', 2, 5)).fetchone()
        end = time.perf_counter()
        ours.append(middle - begin)
        bare.append(end - middle)
    return statistics.median(ours) * 1e6, statistics.median(bare) * 1e6
