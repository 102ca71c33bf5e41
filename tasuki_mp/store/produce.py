"""What producers send: statements and their parameters, for clients with and without asyncio alike.

Nothing here talks to Postgres: the clients do, each in its own way, and read the replies with the functions here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import psycopg
from psycopg import errors as pg

from tasuki_mp import sql
from tasuki_mp.errors import ConflictError, DatabaseError, SchemaError
from tasuki_mp.job import Job, JobRow, Progress, State, row_of
from tasuki_mp.store.words import all_in_words

CancelVerdict = Literal["canceled", "requested", "finished", "unknown"]
"""What came of a cancel: done, since the job was pending; asked for, since it runs; too late; no such job."""

ENQUEUE: Final = sql.query("enqueue")
ENQUEUE_KEYED: Final = sql.query("enqueue_keyed")
CANCEL: Final = sql.query("cancel_each")
STATUS: Final = sql.query("job_status")
PROGRESS: Final = sql.query("job_progress")
TELL: Final = sql.query("tell_copied")

TELL_EVERY: Final = 0.04
"""Seconds between two notifications of one queue by one client in autocommit. Supervisors look again 50 ms after each
notification, so what was enqueued in between is found then."""


def enqueue_parameters(job: Job, *, is_told: bool) -> dict[str, Any]:
    """The parameters of ENQUEUE; `is_told` says whether supervisors are to be notified."""
    row = row_of(job)
    return {
        "queue": row.queue,
        "handler": row.handler,
        "payload": row.payload,
        "priority": row.priority,
        "max_attempts": row.max_attempts,
        "limits": row.limits.text,
        "key": row.key,
        "at": row.scheduled_at,
        "delay": float(row.delay),
        "is_told": is_told,
    }


def enqueueing(job: Job, *, is_told: bool) -> tuple[bytes, dict[str, Any]]:
    """The statement that inserts this job, and its parameters."""
    row = row_of(job)
    if row.unique is None:
        return ENQUEUE, enqueue_parameters(job, is_told=is_told)
    return ENQUEUE_KEYED, keyed_parameters([row], [None], is_told=is_told)


def is_told_apart(row: JobRow) -> bool:
    """Whether supervisors may be told of this job by a statement of its own, TELL, after the one that inserts it.

    A transaction that notifies holds a lock of the whole server until its commit is on disk, and all others that notify
    wait for that; one that only notifies writes nothing, and is over at once.
    """
    return row.unique is None and row.scheduled_at is None and row.delay == 0


def tell_parameters(row: JobRow) -> dict[str, Any]:
    """The parameters of TELL for a job that is due now."""
    return {"queues": [row.queue], "soon": [], "since": None}


def keyed_parameters(rows: Sequence[JobRow], ids: Sequence[int | None], *, is_told: bool) -> dict[str, Any]:
    """The parameters of ENQUEUE_KEYED; an id that is None is drawn there."""
    return {
        "ids": list(ids),
        "queues": [row.queue for row in rows],
        "handlers": [row.handler for row in rows],
        "payloads": [row.payload for row in rows],
        "priorities": [row.priority for row in rows],
        "most_attempts": [row.max_attempts for row in rows],
        "ats": [row.scheduled_at for row in rows],
        "delays": [float(row.delay) for row in rows],
        "limits": [row.limits.text for row in rows],
        "keys": [row.key for row in rows],
        "unique_keys": [row.unique.key if row.unique else None for row in rows],
        "unique_for": [row.unique.seconds if row.unique else None for row in rows],
        "on_conflicts": [row.unique.on_conflict if row.unique else None for row in rows],
        "is_told": is_told,
    }


def standing(row: tuple[Any, ...] | None, key: str | None = None) -> tuple[int, bool]:
    """The id of the job that stands for a key, and whether it is new, from a row of ENQUEUE_KEYED. Raises ConflictError."""
    if row is None:
        raise DatabaseError("the database gave no answer for a job with a unique key")
    standing_id, outcome = int(row[0]), row[1]
    if outcome == "conflict":
        raise ConflictError(standing_id, key)
    return standing_id, outcome == "new"


def job_id(row: tuple[Any, ...] | None) -> int:
    """What ENQUEUE replied."""
    if row is None:
        raise DatabaseError("the database took the job but gave no id: is there a rule or trigger on tasuki.job?")
    return int(row[0])


def cancel_parameters(ids: Iterable[int]) -> dict[str, Any]:
    """The parameters of CANCEL: locked in the order of ids, each once."""
    return {"ids": sorted(set(ids))}


def verdicts(rows: Iterable[tuple[Any, ...]]) -> dict[int, CancelVerdict]:
    """What CANCEL replied."""
    return {job_id: verdict for job_id, verdict in rows}  # noqa: C416  dict() would lose the types


def state(row: tuple[Any, ...] | None) -> State | None:
    """What STATUS replied."""
    return State(row[0]) if row is not None else None


def progress(row: tuple[Any, ...] | None) -> Progress | None:
    """What PROGRESS replied."""
    return Progress(*row) if row is not None else None


def explain(error: psycopg.Error) -> DatabaseError:
    """The error in words that say what to do."""
    reason = all_in_words(error)
    match error:
        case pg.UndefinedTable() | pg.UndefinedFunction() | pg.InvalidSchemaName() | pg.UndefinedColumn():
            return SchemaError(f"this database lacks what tasuki-mp needs: run `tasuki-mp migrate` on it ({reason})")
        case pg.InFailedSqlTransaction():
            return DatabaseError(f"the transaction has failed before: roll it back, then try again ({reason})")
        case pg.ReadOnlySqlTransaction():
            return DatabaseError(f"the server, or the transaction, is read-only: write to the primary ({reason})")
        case pg.InsufficientPrivilege():
            return DatabaseError(f"the role may not do this: grant it the rights on the schema tasuki ({reason})")
        case pg.CheckViolation() if error.diag.constraint_name == "job_payload_size":
            return DatabaseError(f"the payload is too large for the database: store the data elsewhere ({reason})")
        case psycopg.OperationalError() if error.sqlstate is None:
            return DatabaseError(f"can't reach the database: {reason}")
        case _:
            code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
            return DatabaseError(f"the database refused: {reason}{code}")
