"""`tasuki-mp enqueue`: add one job from a shell, with or without the application's code at hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
import psycopg
from psycopg import errors as pg

from tasuki_mp import sql
from tasuki_mp.backoff import MAX_DELAY
from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.errors import ConfigError, PayloadError, UnknownHandlerError
from tasuki_mp.job import LOWEST_PRIORITY, NAME_PATTERN, Job, JobRow
from tasuki_mp.options import parse_duration
from tasuki_mp.payload import DEFAULT_MAX_TEXT, find_flaw
from tasuki_mp.store import produce

_DECLARED: Final = sql.query("enqueue_declared")


class When(msgspec.Struct, frozen=True):
    """When the job is due: at an instant, or after so many seconds; now, if neither is given."""

    at: datetime | None = None
    delay: float | None = None


@click.command(short_help="Add a job, and print its id.")
@click.argument("handler")
@click.argument("payload", default="{}")
@click.option("--queue", metavar="NAME", help="Instead of the handler's own.")
@click.option("--priority", type=click.IntRange(0, LOWEST_PRIORITY), help="0 runs first; instead of the handler's own.")
@click.option("--after", metavar="TIME", help="Due that long from now, like 2h.")
@click.option("--at", "at_text", metavar="WHEN", help="Due then, like 2027-01-01T00:00+09:00.")
@click.option("--app", metavar="MODULE:NAME", help="Check the payload against this application's handler.")
@click.option("--app-dir", metavar="DIR", help="Where to import it from; else the working directory.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object instead of the id alone.")
@database_options
def enqueue(
    dsn: str | None,
    config_file: Path | None,
    handler: str,
    payload: str,
    queue: str | None,
    priority: int | None,
    after: str | None,
    at_text: str | None,
    app: str | None,
    app_dir: str | None,
    is_json: bool,
) -> None:
    """Add a job for HANDLER with the JSON object PAYLOAD, and print its id.

    Queue, priority and attempts are what the handler declares, as far as nothing else is said.
    """
    _require_text(handler, "the handler's name")
    _require_payload(handler, payload)
    if queue is not None and not re.fullmatch(NAME_PATTERN, queue):
        raise ConfigError(f"--queue: {queue!r} is no queue name: 1 to 57 letters, digits, '_', '.', ':' or '-'")
    when = _when(after, at_text)
    job = None if app is None else _checked_job(app, app_dir or "", handler, payload, queue, priority, when)
    with open_connection(dsn, config_file, name="enqueue") as (database, conn):
        say_which(database)
        with _explained(handler):
            if job is not None:
                row = conn.execute(produce.ENQUEUE, produce.enqueue_parameters(job, is_told=True)).fetchone()
            else:
                parameters = {"handler": handler, "payload": payload, "queue": queue, "priority": priority}
                row = conn.execute(_DECLARED, {**parameters, "at": when.at, "delay": when.delay}).fetchone()
    job_id = None if row is None else row[0]
    click.echo(text.json_line({"id": job_id}) if is_json else str(job_id))


@contextmanager
def _explained(handler: str) -> Iterator[None]:
    """What the database finds wrong with the job, as the user's mistake that it is."""
    try:
        yield
    except pg.UndefinedObject as error:
        raise UnknownHandlerError(
            f"no handler named {handler!r} is known to this database: they become known when a supervisor of their"
            " application starts; to enqueue before that, give --queue"
        ) from error
    except psycopg.DataError as error:
        # What JSON allows and jsonb does not, such as numbers with more digits than it can hold.
        raise PayloadError(handler, "$", str(error).partition("\n")[0]) from error


def _checked_job(
    app: str, app_dir: str, handler: str, payload: str, queue: str | None, priority: int | None, when: When
) -> Job:
    """The job as the application's own handler makes it. Raises PayloadError, or UnknownHandlerError."""
    from tasuki_mp.handlers import load_app

    known = load_app(app, app_dir).registry.handlers
    if handler not in known:
        raise UnknownHandlerError(
            f"{app} has no handler named {handler!r}; it has {', '.join(sorted(known)) or 'none'}"
        )
    known[handler].decode(payload)
    info = known[handler].info
    row = JobRow(
        handler=handler,
        payload=payload,
        queue=queue or info.queue,
        priority=info.priority if priority is None else priority,
        max_attempts=info.max_attempts,
        scheduled_at=when.at,
        delay=when.delay or 0.0,
    )
    return Job(row)


def _when(after: str | None, at_text: str | None) -> When:
    if after is not None and at_text is not None:
        raise ConfigError("give --after or --at, not both")
    if after is not None:
        try:
            return When(delay=parse_duration(after))
        except ValueError as error:
            raise ConfigError(f"--after: {error}") from None
    if at_text is None:
        return When()
    try:
        at = datetime.fromisoformat(at_text)
    except ValueError:
        raise ConfigError(f"--at: {at_text!r} is no time; write it like 2027-01-01T00:00+09:00") from None
    if at.tzinfo is None:
        raise ConfigError(f"--at: {at_text!r} has no time zone; write it like {at_text}+09:00 or {at_text}Z")
    if abs((at - datetime.now(UTC)).total_seconds()) > MAX_DELAY:
        raise ConfigError(f"--at: {at_text!r} is more than a hundred years away")
    return When(at=at)


def _require_payload(handler: str, given: str) -> None:
    """What every payload must be, whatever its handler. Raises PayloadError."""
    _require_text(given, "the payload")
    if len(given.encode()) > DEFAULT_MAX_TEXT:
        raise PayloadError(handler, "$", f"is {len(given.encode()):,} bytes of JSON; the limit is {DEFAULT_MAX_TEXT:,}")
    try:
        value = msgspec.json.decode(given)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise PayloadError(handler, "$", f'is no JSON ({error}); write it like \'{{"path": "a.png"}}\'') from None
    if not isinstance(value, dict):
        raise PayloadError(handler, "$", 'must be a JSON object of the handler\'s arguments, like {"path": "a.png"}')
    flaw = find_flaw(value)
    if flaw is not None:
        raise PayloadError(handler, flaw.path, flaw.reason)


def _require_text(given: str, what: str) -> None:
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is not valid UTF-8") from None
