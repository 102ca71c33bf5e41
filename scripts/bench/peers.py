"""Rows against others: noop (pgqueuer, on the same Postgres) and noop-celery (Celery with a Redis of its own).

Each peer runs in a virtual environment of its own, at its best documented settings. From the start of its worker command
to the last job's finish, as ours.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from scripts.bench import app, broker, venvs
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness.waiting import wait

# typer 0.17 and later hand pgqueuer 1.6's command line a string where it expects its own enum: `pgq run` fails.
PGQUEUER: Final = ("pgqueuer[asyncpg]==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0", "typer==0.16.1")
CELERY: Final = ("celery==5.7.0", "redis==8.1.0", "packaging==26.3")
BATCH_SIZES: Final = (50, 100, 250)
"""500 was slower again."""
DEFAULT_BATCH: Final = 10
PGQUEUER_BY_DEFAULT: Final = f"pgqueuer with its default batch size of {DEFAULT_BATCH}"
PREFETCH: Final = 64
"""What Celery's manual advises for many short tasks; 1, 4 (its default), 256 and no limit were no faster."""
FEWER: Final = 5
"""Celery gets so many times fewer jobs: enqueueing them takes it as long as running them."""
TIMEOUT: Final = 900.0
_THEIRS: Final = Path(__file__).resolve().parent / "theirs"


def noop(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """Jobs that do nothing: ours and pgqueuer's, as many worker processes as we have slots."""
    peer = _PgQueuer(stage)
    best = min(BATCH_SIZES, key=lambda size: peer.run(jobs // 5, batch_size=size)[0])

    def measure() -> Pair:
        total, steady = stage.run_jobs(itertools.repeat(app.noop.job(), jobs))
        theirs, their_steady = peer.run(jobs, batch_size=best)
        by_default, _ = peer.run(jobs, batch_size=DEFAULT_BATCH)
        extra = {
            "steady jobs/s, first start to last finish": jobs / steady,
            "pgqueuer's": jobs / their_steady,
            "its best batch size": float(best),
            PGQUEUER_BY_DEFAULT: jobs / by_default,
            "ratio to that": by_default / total,
        }
        return Pair(jobs / total, jobs / theirs, theirs / total, extra)

    return measure


class _PgQueuer:
    """Its tables are in a database of their own on our server."""

    def __init__(self, stage: Stage) -> None:
        self._programs = venvs.environment("pgqueuer", PGQUEUER)
        self._procs = stage.procs
        self._log = stage.folder / "pgqueuer.log"
        stage.conn.execute("CREATE DATABASE pgqueuer")
        url = _url(stage.dsn, "pgqueuer")
        self._environment = {**os.environ, "PGDSN": url}
        self._call("pgq", "install")
        self._conn: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(url, autocommit=True)

    def run(self, jobs: int, *, batch_size: int) -> tuple[float, float]:
        """Enqueue, then run all with workers started for it; seconds as of `Stage.run_jobs`."""
        self._conn.execute("TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics")
        self._call("python", "pgqueuer_jobs.py", str(jobs))
        self._conn.execute("CHECKPOINT")
        worker = ("run", "pgqueuer_jobs:worker", "--mode", "drain", "--batch-size", str(batch_size))
        began = time.time()
        with _running([[self._programs / "pgq", *worker]] * self._procs, self._environment, self._log) as workers:
            for each in workers:
                if each.wait(TIMEOUT) != 0:
                    raise RuntimeError(f"a worker of pgqueuer failed: {self._log.read_text()[-2000:]}")
        row = self._conn.execute(
            """SELECT count(*) FILTER (WHERE status = 'successful'), extract(epoch FROM max(created))::float8,
                      extract(epoch FROM max(created) - min(created) FILTER (WHERE status = 'picked'))::float8
                 FROM pgqueuer_log"""
        ).fetchone()
        assert row is not None
        if row[0] != jobs:
            raise RuntimeError(f"pgqueuer ended {row[0]} of {jobs} jobs; see {self._log}")
        return row[1] - began, row[2]

    def _call(self, program: str, *arguments: str) -> None:
        with self._log.open("ab") as log:
            command = [self._programs / program, *arguments]
            subprocess.run(command, cwd=_THEIRS, env=self._environment, check=True, stdout=log, stderr=log)


def celery(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """Jobs that do nothing: ours and those of Celery with the prefork pool, as many processes as we have slots."""
    programs = venvs.environment("celery", CELERY)
    fewer = max(1, jobs // FEWER)

    def measure() -> Pair:
        total, steady = stage.run_jobs(itertools.repeat(app.noop.job(), jobs))
        theirs = _celery_seconds(stage, programs, fewer)
        rate = fewer / theirs
        extra = {"steady jobs/s, first start to last finish": jobs / steady, "Celery's jobs": float(fewer)}
        return Pair(jobs / total, rate, jobs / total / rate, extra)

    return measure


def _celery_seconds(stage: Stage, programs: Path, jobs: int) -> float:
    log = stage.folder / "celery.log"
    with broker.server(stage.folder) as redis:
        environment = {**os.environ, "PEER_BROKER": redis.url}
        subprocess.run([programs / "python", "celery_jobs.py", str(jobs)], cwd=_THEIRS, env=environment, check=True)
        if (waiting := redis.ask("LLEN", "celery")) != str(jobs):
            raise RuntimeError(f"{waiting} of {jobs} jobs wait for Celery")
        worker = [
            *(programs / "celery", "-A", "celery_jobs", "worker", "--loglevel", "ERROR"),
            *("--pool", "prefork", "--concurrency", str(stage.procs), "--prefetch-multiplier", str(PREFETCH)),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", "-O", "fair"),
        ]
        began = time.perf_counter()
        with _running([worker], environment, log) as (process,):

            def is_over() -> bool:
                # A job is taken off the list into the hash, and out of it when it has been acknowledged.
                is_done = redis.ask("LLEN", "celery") == "0" and redis.ask("HLEN", "unacked") == "0"
                return is_done or process.poll() is not None

            if not wait(is_over, TIMEOUT, every=0.02) or process.poll() is not None:
                raise RuntimeError(f"Celery did not end its jobs: {log.read_text()[-2000:]}")
            return time.perf_counter() - began


@contextmanager
def _running(
    commands: Sequence[Sequence[str | Path]], environment: dict[str, str], log: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The commands, ended when the block is left."""
    started = []
    try:
        with log.open("ab") as output:
            for command in commands:
                process = subprocess.Popen(
                    command,
                    cwd=_THEIRS,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                started.append(process)
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url(dsn: str, database: str) -> str:
    """The same server's other database, in the one spelling that asyncpg and psycopg both read."""
    parts = {key: quote(str(value), safe="") for key, value in conninfo_to_dict(dsn).items()}
    return f"postgresql://{parts['user']}:{parts.get('password', '')}@/{database}?host={parts['host']}"
