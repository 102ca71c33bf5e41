"""What was enqueued: read from the table, compared as JSON, and shown when it is not what a test expects."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp import payload as rules
from tasuki_mp import sql
from tasuki_mp.handlers import Handler
from tasuki_mp.job import Job
from tasuki_mp.store.steps import Step, Steps, drive

_PENDING: Final = sql.query("look_pending")
_SHOWN: Final = 20

Connection = psycopg.Connection[Any]
What = Handler[..., Any] | str | Job


class EnqueuedJob(msgspec.Struct, frozen=True):
    """A job that waits."""

    id: int
    handler: str
    queue: str
    payload: dict[str, Any]
    """As JSON has it."""
    priority: int
    max_attempts: int
    scheduled_at: datetime
    key: str | None


def enqueued(conn: Connection, handler: Handler[..., Any] | str | None = None) -> list[EnqueuedJob]:
    """The jobs that wait, of one handler or of all, in the order in which they were enqueued."""
    name = handler.name if isinstance(handler, Handler) else handler
    return drive(conn, _look(name))


def assert_enqueued(
    conn: Connection,
    what: What,
    *,
    payload: Mapping[str, Any] | None = None,
    queue: str | None = None,
    priority: int | None = None,
    count: int | None = None,
) -> list[EnqueuedJob]:
    """The jobs that wait and fit; AssertionError if there is none, or not exactly `count`.

    `what` is a handler, its name, or a job value, which stands for its handler, its whole payload, its queue and its
    priority. Of a `payload` the fields that are given must be equal, as JSON; others don't matter.
    """
    waiting = enqueued(conn)
    found = [job for job in waiting if _fits(job, what, payload, queue, priority)]
    if (count is None and not found) or (count is not None and len(found) != count):
        wanted = _words(what, payload, queue, priority)
        number = "at least one job" if count is None else f"{count} job{'' if count == 1 else 's'}"
        raise AssertionError(f"expected {number} of {wanted}; {len(found)} of those that wait fit:\n{_list(waiting)}")
    return found


def assert_not_enqueued(
    conn: Connection,
    what: What,
    *,
    payload: Mapping[str, Any] | None = None,
    queue: str | None = None,
    priority: int | None = None,
) -> None:
    """AssertionError if a job that waits fits."""
    assert_enqueued(conn, what, payload=payload, queue=queue, priority=priority, count=0)


def _look(handler: str | None) -> Steps[list[EnqueuedJob]]:
    rows = yield Step(_PENDING, {"handler": handler})
    return [EnqueuedJob(*(*row[:3], msgspec.json.decode(row[3]), *row[4:])) for row in rows]


def _fits(
    job: EnqueuedJob, what: What, payload: Mapping[str, Any] | None, queue: str | None, priority: int | None
) -> bool:
    match what:
        case Job():
            row = what.row
            is_it = (job.handler, job.queue, job.priority) == (row.handler, row.queue, row.priority)
            is_it = is_it and job.payload == msgspec.json.decode(row.payload)
        case Handler():
            is_it = job.handler == what.name
        case _:
            is_it = job.handler == what
    wanted = _as_json(payload or {})
    has_it = all(name in job.payload and job.payload[name] == value for name, value in wanted.items())
    return is_it and has_it and queue in (None, job.queue) and priority in (None, job.priority)


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(rules.encode(dict(value), limit=1 << 30))
    return decoded


def _words(what: What, payload: Mapping[str, Any] | None, queue: str | None, priority: int | None) -> str:
    named = {"payload": None if payload is None else dict(payload), "queue": queue, "priority": priority}
    said = [f"{name} {value!r}" for name, value in named.items() if value is not None]
    match what:
        case Job():
            row = what.row
            shown = f"{row.handler} {row.payload} (queue {row.queue!r}, priority {row.priority})"
        case Handler():
            shown = what.name
        case _:
            shown = what
    return " with ".join([shown, ", ".join(said)]) if said else shown


def _list(jobs: list[EnqueuedJob]) -> str:
    lines = [
        f"  {job.id}: {job.handler} {msgspec.json.encode(job.payload).decode():.300}"
        f" (queue {job.queue!r}, priority {job.priority}, due {job.scheduled_at:%Y-%m-%d %H:%M:%S %Z})"
        for job in jobs[:_SHOWN]
    ]
    if len(jobs) > _SHOWN:
        lines.append(f"  and {len(jobs) - _SHOWN} more")
    return "\n".join(lines) or "  no job waits"
