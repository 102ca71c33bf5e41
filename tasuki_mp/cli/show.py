"""`tasuki-mp show`: everything known about one job."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import ID
from tasuki_mp.errors import TasukiError
from tasuki_mp.logs import escape
from tasuki_mp.store import look
from tasuki_mp.store.look import AttemptInfo, JobInfo

_TEXT_LIMIT: Final = 10_000
"""Characters of a payload, result or output shown to people; `--json` shows all of it."""
_LAST_LINES: Final = 20
_CRASH: Final = "Fatal Python error: "
"""How the interpreter begins to report its own death."""
_MEANINGS: Final = {
    "retry": "to be tried again",
    "snooze": "put off by the handler",
    "release": "given back",
    "rescue": "taken back from a supervisor that fell silent",
}
_WIDTH: Final = 11
_PAD: Final = " " * (_WIDTH + 1)


class JobUnknownError(TasukiError):
    """There is no such job, or its retention is over."""


@click.command(short_help="Show everything known about a job.")
@click.argument("job_id", metavar="ID", type=ID)
@click.option("--json", "is_json", is_flag=True, help="One JSON object with everything uncut.")
@database_options
def show(dsn: str | None, config_file: Path | None, job_id: int, is_json: bool) -> None:
    """Show everything known about a job: state, payload, result, and the error of each attempt."""
    with open_connection(dsn, config_file, name="show") as (database, conn):
        say_which(database)
        found = look.job(conn, job_id)
        if found is None:
            raise JobUnknownError(
                f"there is no job {job_id}: it never was, or it ended so long ago that it was dropped"
            )
        job, attempts = found
        if is_json:
            click.echo(text.json_line(as_json(job, attempts)))
            return
        for line in _lines(job, attempts, datetime.now(UTC)):
            click.echo(line)


def as_json(job: JobInfo, attempts: list[AttemptInfo]) -> dict[str, object]:
    """The job for programs; what is JSON in the database is embedded as it is."""
    return {
        **_with_json(job, ("payload", "result", "error", "usage", "checkpoint", "limits")),
        "attempts": [_attempt_json(a) for a in attempts],
    }


def _attempt_json(attempt: AttemptInfo) -> dict[str, object]:
    return _with_json(attempt, ("error", "usage"))


def _with_json(record: msgspec.Struct, names: tuple[str, ...]) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(record, name) for name in record.__struct_fields__}
    for name in names:
        value = fields[name]
        if isinstance(value, str):
            fields[name] = msgspec.Raw(value.encode())
    return fields


def _lines(job: JobInfo, attempts: list[AttemptInfo], now: datetime) -> Iterator[str]:
    yield f"job {job.id}  {_state(job)}"
    yield _field("handler", escape(job.handler))
    yield _field("queue", f"{escape(job.queue)}, priority {job.priority}")
    crashes = f", {job.crashes} of them crashed" if job.crashes else ""
    interrupted = f", interrupted {text.times(job.interruptions)}" if job.interruptions else ""
    if job.retry_of is not None:
        yield _field("retry of", str(job.retry_of))
    if job.retried_as is not None:
        yield _field("retried as", str(job.retried_as))
    yield _field("attempt", f"{job.attempt} of {job.max_attempts}{crashes}{interrupted}")
    for name, when in (
        ("created", job.created_at),
        ("due", job.scheduled_at),
        ("started", job.started_at),
        ("finished", job.finished_at),
        ("cancel", job.cancel_requested_at),
        ("lease ends", job.lease_expires_at),
    ):
        if when is not None:
            yield _field(name, text.instant(when, now))
    if job.started_at is not None and job.finished_at is not None:
        yield _field("took", text.duration((job.finished_at - job.started_at).total_seconds()))
    if job.host is not None:
        slot = f", slot {job.slot}" if job.slot is not None else ""
        yield _field("runs on", f"{escape(job.host)}{f', pid {job.pid}' if job.pid is not None else ''}{slot}")
    if job.progress is not None or job.progress_note is not None:
        yield _field("progress", escape(text.progress(job.progress, job.progress_note)))
    if job.checkpoint is not None and job.checkpoint_at is not None:
        size = len(job.checkpoint.encode())
        bytes_of = f"{text.number(size)} {'byte' if size == 1 else 'bytes'} of JSON"
        yield _field("checkpoint", f"{bytes_of}, {text.instant(job.checkpoint_at, now)}")
    yield _field("payload", _shortened(job.payload))
    if job.result is not None:
        yield _field("result", _shortened(job.result))
    # A live job's last error is that of its last attempt that had one, and is shown there.
    error = None if job.error in [attempt.error for attempt in attempts] and job.finished_at is None else job.error
    yield from _ending("error" if job.finished_at is not None else "last error", error, job.usage, job.output)
    for attempt in attempts:
        yield ""
        yield from _attempt(attempt, now)


def _state(job: JobInfo) -> str:
    match job.held_by:
        case None:
            return job.state if job.cancel_requested_at is None else f"{job.state}, to be canceled"
        case "handler":
            return f"{job.state}, held: no living supervisor knows its handler"
        case reason:
            return f"{job.state}, held by {escape(reason)}"


def _attempt(attempt: AttemptInfo, now: datetime) -> Iterator[str]:
    took = ""
    if attempt.started_at is not None:
        took = f", took {text.duration((attempt.ended_at - attempt.started_at).total_seconds())}"
    if attempt.kind == "release" and attempt.started_at is not None:
        meaning = "interrupted and given back"
    else:
        meaning = _MEANINGS.get(attempt.kind, escape(attempt.kind))
    yield f"attempt {attempt.attempt}  {meaning}"
    yield _field("ended", text.instant(attempt.ended_at, now) + took)
    yield from _ending("error", attempt.error, attempt.usage, attempt.output)


def _ending(label: str, error: str | None, usage: str | None, output: str | None) -> Iterator[str]:
    if error is not None:
        facts = _facts(error)
        kind, message = facts.pop("type", None) or facts.get("kind", ""), facts.pop("message", "")
        if not kind and not message:
            yield _field(label, _shortened(error))
        else:
            yield _field(label, escape(f"{kind}: {message}" if message else str(kind), limit=_TEXT_LIMIT))
            traceback, stack = facts.pop("traceback", ""), facts.pop("stack", "")
            output = output or str(facts.pop("output", ""))
            if str(traceback).startswith(_CRASH):
                output = output.partition(_CRASH)[0]  # the rest is shown above
            facts.pop("output", None)
            if facts:
                yield _PAD + _pairs(facts)
            if traceback:
                yield text.indent(str(traceback), _PAD)
            if stack:
                yield _PAD + "where it was then:"
                yield text.indent(str(stack), _PAD)
    if usage is not None:
        yield _field("usage", _pairs(_facts(usage)) or _shortened(usage))
    if output:
        lines = output.rstrip("\n").split("\n")
        hidden = len(lines) - _LAST_LINES
        yield _field(
            "output", f"its last {_LAST_LINES} lines; `tasuki-mp logs` shows {hidden} more" if hidden > 0 else ""
        )
        yield text.indent("\n".join(lines[-_LAST_LINES:]), f"{' ' * 2}| ", limit=_TEXT_LIMIT)


def _facts(stored: str) -> dict[str, Any]:
    """What is in a JSON object; nothing, if it is none that this program wrote."""
    try:
        return msgspec.json.decode(stored, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return {}


def _pairs(facts: dict[str, Any]) -> str:
    return escape(", ".join(_pair(name, value) for name, value in facts.items()))


def _pair(name: str, value: Any) -> str:
    if name.endswith("seconds") and isinstance(value, int | float):
        return f"{name.removesuffix('seconds').rstrip('_') or 'ran'} {text.duration(value)}"
    if name == "memory_peak" and isinstance(value, int):
        return f"memory peak {text.size(value)}"
    return f"{name.replace('_', ' ')} {value}"


def _field(name: str, value: str) -> str:
    return f"{name:<{_WIDTH}} {value}".rstrip()


def _shortened(value: str) -> str:
    return escape(value, limit=_TEXT_LIMIT)
