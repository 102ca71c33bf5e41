"""Where a benchmark happens: a database that keeps what it was told, and the real program."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg

from scripts.bench import app
from scripts.harness import host
from scripts.harness.runner import Runner
from tasuki_mp.job import Job


class Stage:
    """One database and a folder. `procs` is how many slots the program gets."""

    def __init__(self, dsn: str, folder: Path, *, procs: int, options: tuple[str, ...] = ()) -> None:
        self.dsn = dsn
        self.procs = procs
        self.tag = host.new_tag()
        self.conn: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(dsn, autocommit=True)
        self.folder = folder
        """For logs and sockets."""
        self._options = options

    def close(self) -> None:
        self.conn.close()

    def clear(self) -> None:
        """No jobs, no history, no dirty pages of an earlier run."""
        self.conn.execute("TRUNCATE tasuki.job, tasuki.job_archive, tasuki.attempt")
        self.conn.execute("CHECKPOINT")

    def supervisor(self, *options: str) -> Runner:
        """The program, started now."""
        return Runner(
            *("--procs", str(self.procs)),
            *self._options,
            *options,
            app="scripts.bench.app:app",
            dsn=self.dsn,
            log=self.folder / "log",
            tag=self.tag,
        )

    def run_jobs(self, jobs: Iterable[Job]) -> tuple[float, float]:
        """Enqueue, then run all of them with a program that is started for it.

        Seconds from its start to the last finish, and from the first job's start to that.
        """
        self.clear()
        ids = app.app.enqueue_many(jobs, self.conn)
        began = time.time()
        runner = self.supervisor("--drain")
        try:
            if (code := runner.wait(600)) != 0:
                raise RuntimeError(f"the program ended with exit code {code}; see {runner.log}")
        finally:
            runner.close()
        row = self.conn.execute(
            """SELECT count(*) FILTER (WHERE status = 'completed'), extract(epoch FROM max(finished_at))::float8,
                      extract(epoch FROM max(finished_at) - min(started_at))::float8
                 FROM tasuki.job_archive"""
        ).fetchone()
        assert row is not None
        if row[0] != len(ids):
            raise RuntimeError(f"{row[0]} of {len(ids)} jobs completed")
        return row[1] - began, row[2]
