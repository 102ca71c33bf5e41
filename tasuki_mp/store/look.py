"""What people and metrics ask the database: who works on what, how much waits, and all about one job. Reads only.

Synchronous: the CLI and the thread that serves `/metrics` use it, never the supervisor's loop.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import Any, Final

import msgspec
import psycopg
from psycopg.rows import class_row

from tasuki_mp import sql
from tasuki_mp.store.connect import connect

_LIVE: Final = sql.query("look_live")
_FINAL: Final = sql.query("look_final")
_RUNNING: Final = sql.query("look_running")
_SUPERVISORS: Final = sql.query("look_supervisors")
_UNKNOWN: Final = sql.query("look_unknown")
_NOTIFICATIONS: Final = sql.query("notification_usage")
_REPORT: Final = sql.query("report")
_CHECKPOINT: Final = sql.query("look_checkpoint")
_JOB: Final = sql.query("look_job")
_ATTEMPTS: Final = sql.query("look_attempts")

Connection = psycopg.Connection[tuple[Any, ...]]


class QueueDepth(msgspec.Struct, frozen=True, kw_only=True):
    """The live jobs of a queue."""

    queue: str
    due: int
    scheduled: int
    """Pending, but their time has not come."""
    held: int
    """Pending, but nobody may lease them for now, whatever their time."""
    running: int
    oldest_due: float
    """Seconds that the oldest due job has waited; 0 without one."""
    paused_at: datetime | None = None


class FinalCount(msgspec.Struct, frozen=True):
    queue: str
    status: str
    jobs: int


class RunningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that runs somewhere. Host, pid, slot and age are None until its supervisor's next heartbeat writes them."""

    id: int
    queue: str
    handler: str
    attempt: int
    max_attempts: int
    host: str | None
    pid: int | None
    slot: int | None
    age: float | None
    is_cancel_requested: bool
    is_expired: bool
    """Its lease is over: it waits to be rescued, or for a word from its supervisor."""
    progress: float | None = None
    progress_note: str | None = None
    interruptions: int = 0
    """How often it was started and given back before, without using an attempt."""


class SupervisorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor that registered; a stale one has not been heard of for a whole lease."""

    host: str
    pid: int
    version: str
    procs: int
    queues: list[str]
    handlers: list[str]
    started_at: datetime
    seen_ago: float
    is_stale: bool
    running: int


class HandlerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the attempts of one handler came to. Times in seconds, memory in bytes; None where nothing is known."""

    handler: str
    jobs: int
    """Those that have ended for good: completed, failed or canceled."""
    completed: int
    failed: int
    canceled: int
    retried: int
    """Attempts that failed, or were lost, and were followed by another."""
    cpu_seconds: float
    """Of all attempts, subprocesses included."""
    ran_p50: float | None
    ran_p95: float | None
    ran_p99: float | None
    waited_p50: float | None
    waited_p95: float | None
    waited_p99: float | None
    memory_peak: int | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole database at one instant."""

    queues: list[QueueDepth]
    final: list[FinalCount] | None
    """None when the archive is too large to be counted in time."""
    running: list[RunningJob]
    running_total: int
    supervisors: list[SupervisorInfo]
    unknown_handlers: dict[str, int]
    """Pending jobs of handlers that no living supervisor knows."""


class AttemptInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not end its job. Error and usage are JSON texts."""

    lease_no: int
    attempt: int
    kind: str
    started_at: datetime | None
    ended_at: datetime
    error: str | None
    usage: str | None
    output: str | None


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a job. Payload, result, error and usage are JSON texts, as they are in the database."""

    id: int
    queue: str
    handler: str
    state: str
    payload: str
    priority: int
    attempt: int
    max_attempts: int
    crashes: int
    lease_no: int
    created_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    lease_expires_at: datetime | None
    cancel_requested_at: datetime | None
    held_by: str | None
    host: str | None
    pid: int | None
    slot: int | None
    result: str | None
    error: str | None
    usage: str | None
    output: str | None
    retry_of: int | None
    """The finished job that this one was made of, by request."""
    retried_as: int | None
    """The newest job that was made of this one."""
    progress: float | None = None
    progress_note: str | None = None
    interruptions: int | None = None
    """How often it was started and given back, without using an attempt; None once it has ended."""
    checkpoint: str | None = None
    """What it left for its next attempt, as JSON text."""
    checkpoint_at: datetime | None = None
    limits: str | None = None
    """Its own, as JSON text; what they do not say, its handler does."""


@contextmanager
def snapshot(conn: Connection, *, timeout: float = 30) -> Iterator[None]:
    """All statements within see the same instant, write nothing, and end after `timeout` seconds each."""
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read, read only")
        # These read whole tables on purpose, which the connection's settings forbid for the hot statements.
        conn.execute("set local enable_seqscan = on")
        conn.execute("set local enable_bitmapscan = on")
        _bound(conn, timeout)
        yield


def _bound(conn: Connection, timeout: float) -> None:
    conn.execute("select set_config('statement_timeout', %s, true)", (str(round(timeout * 1000)),))


def status(
    conn: Connection, *, running_limit: int = 100, final_timeout: float = 10, now: datetime | None = None
) -> Status:
    """The state of everything at one instant, so that no job is counted twice.

    Names at most `running_limit` running jobs, and gives up counting the archive after `final_timeout` seconds.
    """
    with snapshot(conn):
        queues = queue_depths(conn, now=now)
        running = running_jobs(conn, limit=running_limit, now=now)
        return Status(
            queues=queues,
            final=_final_counts(conn, timeout=final_timeout),
            running=running,
            running_total=sum(depth.running for depth in queues),
            supervisors=supervisors(conn, now=now),
            unknown_handlers=unknown_handlers(conn, now=now),
        )


def running_jobs(conn: Connection, *, limit: int, now: datetime | None = None) -> list[RunningJob]:
    """At most so many running jobs, those that run longest first."""
    with conn.cursor(row_factory=class_row(RunningJob)) as cursor:
        return cursor.execute(_RUNNING, {"now": now, "limit": limit}).fetchall()


def supervisors(conn: Connection, *, now: datetime | None = None) -> list[SupervisorInfo]:
    """All that registered and were not forgotten."""
    with conn.cursor(row_factory=class_row(SupervisorInfo)) as cursor:
        return cursor.execute(_SUPERVISORS, {"now": now}).fetchall()


def unknown_handlers(conn: Connection, *, now: datetime | None = None) -> dict[str, int]:
    """How many jobs are pending for each handler that no living supervisor knows."""
    return {handler: jobs for handler, jobs, _ in _unknown(conn, now)}


def _unknown(conn: Connection, now: datetime | None = None) -> list[tuple[str, int, float]]:
    return [(str(handler), int(jobs), float(due)) for handler, jobs, due in conn.execute(_UNKNOWN, {"now": now})]


def report(conn: Connection, *, since: datetime) -> list[HandlerReport]:
    """The attempts that ended since then, by handler; those that took the most CPU time come first."""
    rows = conn.execute(_REPORT, {"since": since}).fetchall()
    nothing = (None, None, None)
    names = HandlerReport.__struct_fields__
    return [
        HandlerReport(**dict(zip(names, (*row[:7], *(row[7] or nothing), *(row[8] or nothing), row[9]), strict=True)))
        for row in rows
    ]


def queue_depths(conn: Connection, *, now: datetime | None = None) -> list[QueueDepth]:
    """Each queue that has live jobs or is paused, by name."""
    with conn.cursor(row_factory=class_row(QueueDepth)) as cursor:
        return cursor.execute(_LIVE, {"now": now}).fetchall()


def _final_counts(conn: Connection, *, timeout: float) -> list[FinalCount] | None:
    try:
        with conn.transaction(), conn.cursor(row_factory=class_row(FinalCount)) as cursor:  # a savepoint
            _bound(conn, timeout)
            return cursor.execute(_FINAL).fetchall()
    except psycopg.errors.QueryCanceled:
        return None


def checkpoint(conn: Connection, job_id: int) -> str | None:
    """What a job's last attempt has left, as JSON text."""
    row = conn.execute(_CHECKPOINT, {"id": job_id}).fetchone()
    return None if row is None else row[0]


def job(conn: Connection, job_id: int) -> tuple[JobInfo, list[AttemptInfo]] | None:
    """A job and its earlier attempts, or None if there is none (any more)."""
    with snapshot(conn):
        with conn.cursor(row_factory=class_row(JobInfo)) as cursor:
            info = cursor.execute(_JOB, {"id": job_id}).fetchone()
        if info is None:
            return None
        with conn.cursor(row_factory=class_row(AttemptInfo)) as cursor_of_attempts:
            return info, cursor_of_attempts.execute(_ATTEMPTS, {"id": job_id}).fetchall()


class Depths(msgspec.Struct, frozen=True, kw_only=True):
    """How full the database is, as far as somebody should be woken for it."""

    queues: list[QueueDepth]
    unknown_jobs: int
    """Pending jobs whose handler no living supervisor knows."""
    unknown_oldest_due: float
    """Seconds for which the oldest of those has been due."""
    notification_usage: float
    """How full the queue of notifications is, from 0 to 1."""


class DepthProbe:
    """The depths for `/metrics`: asks the database at most every `every` seconds, on a connection of its own.

    Called from the threads of the HTTP server. Gives None while the database can't be asked: no figure is better than a
    stale one.
    """

    def __init__(self, dsn: str, *, every: float = 5.0, timeout: float = 5.0) -> None:
        self._dsn = dsn
        self._every = every
        self._timeout = timeout
        self._lock = threading.Lock()
        self._conn: Connection | None = None
        self._asked_at: float | None = None
        self._depths: Depths | None = None

    def __call__(self) -> Depths | None:
        with self._lock:
            if self._asked_at is None or monotonic() - self._asked_at >= self._every:
                self._depths = self._ask()
                self._asked_at = monotonic()
            return self._depths

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self) -> Depths | None:
        try:
            if self._conn is None or self._conn.closed:
                self._conn = connect(self._dsn, name="metrics", connect_timeout=self._timeout)
            with snapshot(self._conn, timeout=self._timeout):
                unknown = _unknown(self._conn)
                usage = self._conn.execute(_NOTIFICATIONS).fetchone()
                return Depths(
                    queues=queue_depths(self._conn),
                    unknown_jobs=sum(jobs for _, jobs, _ in unknown),
                    unknown_oldest_due=max((due for _, _, due in unknown), default=0.0),
                    notification_usage=float(usage[0]) if usage is not None else 0.0,
                )
        except psycopg.Error:
            self._drop()
            return None

    def _drop(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
