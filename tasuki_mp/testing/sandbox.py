"""A PostgreSQL for a test session, and a fresh database with the schema for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tasuki_mp import embedded
from tasuki_mp.app import Tasuki
from tasuki_mp.batching import Batch
from tasuki_mp.client import Client, IdRanges, JobHandle
from tasuki_mp.handlers import Handler
from tasuki_mp.job import Job, row_of
from tasuki_mp.migrate import migrate
from tasuki_mp.store.schedules import Ticked
from tasuki_mp.testing import inline, seen, ticks
from tasuki_mp.testing.inline import Run
from tasuki_mp.testing.seen import EnqueuedJob, What


class Server:
    """A server whose role may create databases."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._numbers = itertools.count()
        self._templates: dict[date, str] = {}

    @contextmanager
    def database(self) -> Iterator[str]:
        """The dsn of a new database with the schema; dropped afterwards, whoever is still connected."""
        name = self._name("test")
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            # On a server without fsync a copy file by file is the cheaper one.
            row = conn.execute("show fsync").fetchone()
            strategy = sql.SQL("file_copy" if row == ("off",) else "wal_log")
            statement = sql.SQL("create database {} template {} strategy {}")
            conn.execute(statement.format(sql.Identifier(name), sql.Identifier(self._template()), strategy))
        try:
            yield make_conninfo(self.dsn, dbname=name)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Drop what is left on the server."""
        while self._templates:
            self._drop(self._templates.popitem()[1])

    def _template(self) -> str:
        # The schema has a partition for each day, so a template of yesterday would be an old database.
        today = datetime.now(UTC).date()
        if today not in self._templates:
            name = self._name("template")
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            self._templates[today] = name
            migrate(make_conninfo(self.dsn, dbname=name))
        return self._templates[today]

    def _name(self, kind: str) -> str:
        return f"tasuki_mp_{kind}_{os.getpid()}_{next(self._numbers)}"

    def _drop(self, name: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextmanager
def server(dsn: str | None = None) -> Iterator[Server]:
    """The server of that dsn, else an embedded one, fast and forgetful, which is gone afterwards."""
    if dsn is not None:
        given = Server(dsn)
        try:
            yield given
        finally:
            given.close()
        return
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-testing-"))
    folder.chmod(0o711)  # where root runs the tests, the server runs as somebody else
    try:
        with embedded.start(folder, fsync=False) as running:
            yield Server(running.dsn)
        running.wait_stopped()
    finally:
        shutil.rmtree(folder)


class _ClockedClient(Client):
    """Puts jobs off by a clock that is ahead of the database's."""

    def __init__(self, dsn: str, ahead: Callable[[], timedelta]) -> None:
        super().__init__(dsn)
        self._ahead = ahead

    def enqueue(self, job: Job, conn: psycopg.Connection[Any] | None = None) -> JobHandle:
        return super().enqueue(self._later(job), conn)

    def enqueue_many(self, jobs: Iterable[Job], conn: psycopg.Connection[Any] | None = None) -> IdRanges:
        return super().enqueue_many(map(self._later, jobs), conn)

    def enqueue_batch(self, jobs: Iterable[Job], conn: psycopg.Connection[Any] | None = None, **options: Any) -> Batch:
        return super().enqueue_batch(map(self._later, jobs), conn, **options)

    def _later(self, job: Job) -> Job:
        row = row_of(job)
        if not row.delay:
            return job
        return Job(msgspec.structs.replace(row, delay=row.delay + self._ahead().total_seconds()))


class Sandbox:
    """A database of one test's own, and a clock that it may set."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.conn: psycopg.Connection[Any] = psycopg.connect(dsn, autocommit=True)
        """In autocommit, so that everybody sees at once what was done on it."""
        self._offset = timedelta()
        self._apps: list[tuple[Tasuki, Client | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the applications back what they had, and close all connections."""
        for app, before in self._apps:
            if app._client is not None:
                app._client.close()
            app._client = before
        self._apps.clear()
        self.conn.close()

    def use(self, app: Tasuki) -> Tasuki:
        """The same application; until the end of the test it enqueues into this database, and its handlers are known."""
        if not any(used is app for used, _ in self._apps):
            self._apps.append((app, app._client))
            app._client = _ClockedClient(self.dsn, lambda: self._offset)
            app.load()
            inline.declare(app, self.conn)
        return app

    @property
    def now(self) -> datetime:
        """What time it is for `run_due` and `drain`."""
        row = self.conn.execute("select clock_timestamp()").fetchone()
        return row[0] + self._offset if row is not None else datetime.now(UTC)

    def travel(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> datetime:
        """Let so much time go by; what time it is then. For an application in `use`, jobs that are put off count from it."""
        step = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if step < timedelta():
            raise ValueError("time goes forward only: a job that is due stays due")
        self._offset += step
        return self.now

    def travel_to(self, when: datetime) -> datetime:
        """Let it be that time."""
        if when.tzinfo is None:
            raise ValueError(f"{when!r} has no time zone; say which one you mean, for example tzinfo=datetime.UTC")
        step = when - self.now
        if step < timedelta():
            raise ValueError(f"{when} is over: time goes forward only")
        self._offset += step
        return self.now

    def run_due(self, app: Tasuki, *, resources: Mapping[str, Any] | None = None, raises: bool = False) -> list[Run]:
        """Run what is due now; see `tasuki_mp.testing.run_due`."""
        return inline.run_due(self.use(app), self.conn, now=self.now, resources=resources, raises=raises)

    def drain(self, app: Tasuki, *, resources: Mapping[str, Any] | None = None, raises: bool = False) -> list[Run]:
        """Run all jobs, whenever they are due; see `tasuki_mp.testing.drain`."""
        return inline.drain(self.use(app), self.conn, now=self.now, resources=resources, raises=raises)

    def fire_ticks(self, app: Tasuki) -> list[Ticked]:
        """Decide the ticks that are due now, and insert their jobs; see `tasuki_mp.testing.fire_ticks`."""
        return ticks.fire_ticks(self.use(app), self.conn, now=self.now)

    def enqueued(self, handler: Handler[..., Any] | str | None = None) -> list[EnqueuedJob]:
        """The jobs that wait, of one handler or of all."""
        return seen.enqueued(self.conn, handler)

    def assert_enqueued(self, what: What, **wanted: Any) -> list[EnqueuedJob]:
        """The jobs that wait and fit; see `tasuki_mp.testing.assert_enqueued`."""
        return seen.assert_enqueued(self.conn, what, **wanted)

    def assert_not_enqueued(self, what: What, **wanted: Any) -> None:
        """AssertionError if a job that waits fits."""
        seen.assert_not_enqueued(self.conn, what, **wanted)
