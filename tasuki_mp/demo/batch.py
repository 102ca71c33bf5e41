"""The demo's jobs in the database: put in, counted while they run, and read when they have run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import class_row

from tasuki_mp import sql
from tasuki_mp.demo.analysis import FileReport
from tasuki_mp.demo.app import QUEUE, analyse, app

Connection = psycopg.Connection[tuple[Any, ...]]

_LEFT: Final = sql.query("demo_left")
_FINISHED: Final = sql.query("demo_finished")
_UNFINISHED: Final = sql.query("demo_unfinished")
_decode_report = msgspec.json.Decoder(FileReport).decode


class Left(msgspec.Struct, frozen=True):
    """What is left of one batch. The jobs of a batch were inserted by one transaction: `created_at` is its name."""

    created_at: datetime
    unfinished: int
    running: int


class FinishedJob(msgspec.Struct, frozen=True):
    """One line of the archive."""

    status: str
    path: str
    result: str | None
    error_type: str | None
    error_message: str | None
    cpu_seconds: float | None
    started_at: datetime | None
    finished_at: datetime
    owner: UUID | None

    @property
    def report(self) -> FileReport | None:
        return None if self.result is None else _decode_report(self.result)


def enqueue(conn: Connection, paths: Sequence[Path]) -> datetime:
    """Insert one job per file, all of them or none, by COPY; returns the batch's created_at."""
    with conn.transaction():
        ranges = app.enqueue_many((analyse.job(path) for path in paths), conn=conn)
        row = conn.execute("select created_at from tasuki.job where id = %s", (next(iter(ranges)),)).fetchone()
    if row is None:
        raise LookupError("a job that was just inserted is not there")
    created_at: datetime = row[0]
    return created_at


def left(conn: Connection) -> list[Left]:
    """The batches that are not done, the oldest first."""
    return [Left(*row) for row in conn.execute(_LEFT, {"queue": QUEUE})]


def cancel_all(conn: Connection) -> int:
    """Cancel what is not done of any batch; how many that were. Those that run end with their supervisor's consent."""
    ids = [row[0] for row in conn.execute(_UNFINISHED, {"queue": QUEUE})]
    if ids:
        app.cancel(*ids, conn=conn)
    return len(ids)


def finished(conn: Connection, batches: Sequence[datetime], *, since: datetime) -> list[FinishedJob]:
    """The finished jobs of these batches, in the order of their finishing, those finished before `since` left out."""
    parameters = {"queue": QUEUE, "batches": list(batches), "since": since}
    with conn.cursor(row_factory=class_row(FinishedJob)) as cursor:
        return cursor.execute(_FINISHED, parameters).fetchall()


def now(conn: Connection) -> datetime:
    """The database's clock, which is the one that stamps jobs."""
    row = conn.execute("select clock_timestamp()").fetchone()
    if row is None:
        raise LookupError("the database did not say what time it is")
    moment: datetime = row[0]
    return moment
