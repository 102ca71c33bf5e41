"""Where a benchmark happens: a database that keeps what it was told, and the real program."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from scripts.bench import app, meter
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.waiting import wait
from tasuki_mp.job import Job
from tasuki_mp.migrate import migrate


class Stage:
    """One database and a folder. `procs` is how many slots the program gets."""

    def __init__(
        self, dsn: str, folder: Path, *, procs: int, server_log: Path = Path(os.devnull), options: tuple[str, ...] = ()
    ) -> None:
        self.dsn = dsn
        self.procs = procs
        self.server_log = server_log
        self.tag = host.new_tag()
        self.conn: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(dsn, autocommit=True)
        self.folder = folder
        """For logs and sockets."""
        self._options = options
        self.cpu = 0.0
        """CPU seconds of the program and the server together during the last `run_jobs`."""
        self._numbers = itertools.count(1)
        self._others: list[Stage] = []

    def another(self, name: str) -> Stage:
        """A second database on the same server, for a reference that has other rows in its tables."""
        self.conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        dsn = make_conninfo(self.dsn, dbname=name)
        migrate(dsn)
        other = Stage(dsn, self.folder, procs=self.procs, server_log=self.server_log, options=self._options)
        self._others.append(other)
        return other

    def close(self) -> None:
        for other in self._others:
            other.close()
        self.conn.close()

    def clear(self) -> None:
        """No jobs, no history, no dirty pages of an earlier run."""
        self.conn.execute("TRUNCATE tasuki.job, tasuki.job_archive, tasuki.attempt")
        self.conn.execute("CHECKPOINT")

    def supervisor(self, *options: str, procs: int | None = None, level: str = "info") -> Runner:
        """The program, started now."""
        return Runner(
            *("--procs", str(procs or self.procs)),
            *self._options,
            *options,
            app="scripts.bench.app:app",
            dsn=self.dsn,
            log=self.folder / f"log-{self.conn.info.dbname}-{next(self._numbers)}",
            tag=self.tag,
            level=level,
        )

    @contextmanager
    def waiting(self, *options: str, count: int = 1, procs: int | None = None) -> Iterator[list[Runner]]:
        """Supervisors with all of their children, idle by now; stopped afterwards."""
        procs = procs or self.procs
        with ExitStack() as stack:
            runners = [stack.enter_context(closing(self.supervisor(*options, procs=procs))) for _ in range(count)]
            for runner in runners:
                if not wait(lambda: _has_all_children(runner, procs), 60):  # noqa: B023 -- called at once
                    raise RuntimeError(f"a supervisor did not get its children; see {runner.log}")
            yield runners
            self.stop(*runners)

    @staticmethod
    def stop(*runners: Runner) -> None:
        """Stop them as an administrator does, so that they give back what has not begun; returns when they are gone."""
        for runner in runners:
            runner.signal(signal.SIGTERM)
        for runner in runners:
            if (code := runner.wait(60)) != 0:
                raise RuntimeError(f"the program ended with exit code {code}; see {runner.log}")

    def run_jobs(self, jobs: Iterable[Job]) -> tuple[float, float]:
        """Enqueue, then run all of them with a program that is started for it.

        Seconds from its start to the last finish, and from the first job's start to that.
        """
        self.clear()
        ids = app.app.enqueue_many(jobs, self.conn)
        server = meter.server_cpu(self.conn)
        began = time.time()
        runner = self.supervisor("--drain")
        followed = meter.Followed(runner.pid, self.procs)
        try:
            if (code := runner.wait(600)) != 0:
                raise RuntimeError(f"the program ended with exit code {code}; see {runner.log}")
        finally:
            runner.close()
            followed.close()
        self.cpu = followed.seconds + meter.server_cpu(self.conn) - server
        row = self.conn.execute(
            """SELECT count(*) FILTER (WHERE status = 'completed'), extract(epoch FROM max(finished_at))::float8,
                      extract(epoch FROM max(finished_at) - min(started_at))::float8
                 FROM tasuki.job_archive"""
        ).fetchone()
        assert row is not None
        if row[0] != len(ids):
            raise RuntimeError(f"{row[0]} of {len(ids)} jobs completed")
        return row[1] - began, row[2]


def _has_all_children(runner: Runner, procs: int) -> bool:
    if not runner.is_alive:
        raise RuntimeError(f"the program has ended; see {runner.log}")
    if not any(event["event"] == "started" for event in runner.events()):
        return False
    return len(host.slots_of(runner.pid)) == procs
