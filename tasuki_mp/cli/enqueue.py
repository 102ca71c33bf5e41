"""`tasuki-mp enqueue`: add one job or a file of them from a shell, with or without the application's code at hand."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from tasuki_mp import migrate, sql
from tasuki_mp.cli.database import connected, database_options, open_database, say_which
from tasuki_mp.cli.feed import Check
from tasuki_mp.cli.lines import STDIN, format_of
from tasuki_mp.cli.producing import Options, Run, dry_run, encoded, require_text
from tasuki_mp.cli.selection import instant
from tasuki_mp.errors import AppImportError, ConfigError, HandlerError, UnknownHandlerError
from tasuki_mp.job import LOWEST_PRIORITY, NAME_PATTERN, JobRow
from tasuki_mp.options import parse_duration
from tasuki_mp.payload import DEFAULT_MAX_TEXT
from tasuki_mp.store import named_lock
from tasuki_mp.store.look import Connection

_DECLARED: Final = sql.query("declared_handler")


@click.command(short_help="Add a job, or a file of them.")
@click.argument("handler")
@click.argument("payload", required=False)
@click.option("--file", metavar="FILE|-", help="One job a line: NDJSON, or CSV with --app; .gz is unpacked.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="Of the file; else its name says it.")
@click.option("--queue", metavar="NAME", help="Instead of the handler's own.")
@click.option("--priority", type=click.IntRange(0, LOWEST_PRIORITY), help="0 runs first; instead of the handler's own.")
@click.option("--after", metavar="TIME", help="Due that long from now, like 2h.")
@click.option("--at", "at_text", metavar="WHEN", help="Due then, like 2027-01-01T00:00+09:00.")
@click.option("--unique-key", metavar="KEY", help="Only if no live job has it; {name} stands for a field.")
@click.option(
    "--on-conflict", type=click.Choice(["skip", "replace", "raise"]), default="skip", help="If one has.  [skip]"
)
@click.option("--batch", metavar="NAME", help="The jobs of the file are a batch of that name; see `tasuki-mp batch`.")
@click.option("--chunk", type=click.IntRange(1), metavar="N", help="Commit after every N jobs, not once at the end.")
@click.option(
    "--skip-bad",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append bad lines to it, and enqueue the others.",
)
@click.option("--dry-run", "is_dry", is_flag=True, help="Check everything and enqueue nothing.")
@click.option("--wait", "is_waiting", is_flag=True, help="Until all are final; exit with 0 only if all completed.")
@click.option("--timeout", metavar="TIME", help="How long --wait waits.")
@click.option("--lock", metavar="NAME", help="Exit at once, with 9, while another run holds this lock.")
@click.option("--app", metavar="MODULE:NAME", help="Check each payload against this application's handler.")
@click.option("--app-dir", metavar="DIR", help="Where to import it from; else the working directory.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="Print nothing but errors.")
@database_options
def enqueue(
    *,
    dsn: str | None,
    config_file: Path | None,
    handler: str,
    payload: str | None,
    queue: str | None,
    after: str | None,
    at_text: str | None,
    timeout: str | None,
    app: str | None,
    app_dir: str | None,
    **given: Any,
) -> int:
    """Add a job for HANDLER with the JSON object PAYLOAD, and print its id; or one for each line of a file.

    Queue, priority and attempts are what the handler declares, as far as nothing else is said. A bad line is an error
    that names it, and then nothing is enqueued.
    """
    require_text(handler, "the handler's name")
    if not handler.isprintable():
        raise ConfigError(f"{handler!r:.100} is no handler's name, which has printable characters only")
    if queue is not None and not re.fullmatch(NAME_PATTERN, queue):
        raise ConfigError(f"--queue: {queue!r} is no queue name: 1 to 57 letters, digits, '_', '.', ':' or '-'")
    if payload == STDIN and given["file"] is None:
        payload, given["file"] = None, STDIN
    at, delay = _when(after, at_text)
    options = Options(
        handler=handler,
        payload=payload,
        queue=queue,
        at=at,
        delay=delay,
        timeout=None if timeout is None else _seconds("--timeout", timeout),
        **given,
    )
    _require_agreement(options)
    if options.file is not None and app is None and (options.form or format_of(options.file)) == "csv":
        raise ConfigError(
            "CSV needs --app: without the handler's signature nobody knows whether a cell is a number or a text;"
            " give --app MODULE:NAME, or send NDJSON"
        )
    known = None if app is None else _known(app, app_dir or "", options)
    if options.payload is not None or options.file is None:
        (known[1] if known else Check(handler, None, DEFAULT_MAX_TEXT))(encoded(options.payload))
    if options.is_dry and known is not None:
        return dry_run(options, *known)
    with open_database(dsn, config_file) as database, connected(database, name="enqueue") as conn:
        if options.lock is not None:
            named_lock.take(conn, options.lock)
        migrate.check(conn)
        say_which(database)
        if known is None:
            known = _declared(conn, options), Check(handler, None, DEFAULT_MAX_TEXT)
        if options.is_dry:
            return dry_run(options, *known)
        return Run(options, database, conn).all(*known)


# ── what is to be enqueued ────────────────────────────────────────────────────────────────────────────────────────────


def _known(app: str, app_dir: str, options: Options) -> tuple[JobRow, Check]:
    """A row without payload, and the check of payloads, as the application's own handler has them."""
    from tasuki_mp.handlers import load_app

    handler = options.handler
    try:
        application = load_app(app, app_dir)
    except AppImportError as error:
        if sys.stderr.isatty():
            raise
        # Cron mails what is said: one line. A person gets the traceback.
        last = error.traceback.rstrip().rpartition("\n")[2]
        raise HandlerError(f"the application {app!r} could not be imported: {last}") from error
    known = application.registry.handlers
    if handler not in known:
        raise UnknownHandlerError(
            f"{app} has no handler named {handler!r}; it has {', '.join(sorted(known)) or 'none'}"
        )
    info = known[handler].info
    row = _template(options, info.queue, info.priority, info.max_attempts)
    return row, Check(handler, known[handler].plan, application.registry.max_payload)


def _declared(conn: Connection, options: Options) -> JobRow:
    """A row without payload, with what the handler declared when a supervisor of its application last started."""
    row = conn.execute(_DECLARED, {"handler": options.handler}).fetchone()
    if row is not None:
        return _template(options, *row)
    if options.queue is None:
        raise UnknownHandlerError(
            f"no handler named {options.handler!r} is known to this database: they become known when a supervisor of"
            " their application starts; to enqueue before that, give --queue"
        )
    return _template(options)


def _template(options: Options, queue: str = "", priority: int | None = None, attempts: int | None = None) -> JobRow:
    row = JobRow(
        handler=options.handler, payload="", queue=options.queue or queue, scheduled_at=options.at, delay=options.delay
    )
    priority = options.priority if options.priority is not None else priority
    changes = {"priority": priority, "max_attempts": attempts}
    return msgspec.structs.replace(row, **{name: value for name, value in changes.items() if value is not None})


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _require_agreement(options: Options) -> None:
    if options.file is None:
        for name, value in (
            ("--batch", options.batch),
            ("--chunk", options.chunk),
            ("--skip-bad", options.skip_bad),
            ("--format", options.form),
        ):
            if value is not None:
                raise ConfigError(f"{name} is for a --file of jobs")
    elif options.payload is not None:
        raise ConfigError("give a payload or --file, not both")
    if options.timeout is not None and not options.is_waiting:
        raise ConfigError("--timeout says how long --wait waits: give both")
    if options.batch is not None and not (1 <= len(options.batch) <= 200 and options.batch.isprintable()):
        raise ConfigError(f"--batch: a batch's name has 1 to 200 printable characters, not {options.batch!r:.100}")
    if options.skip_bad is not None and options.on_conflict == "raise":
        raise ConfigError(
            "--skip-bad puts aside what is bad by itself, and a conflict stops everything: give one of them"
        )
    if options.unique_key is not None:
        require_text(options.unique_key, "the unique key")


def _when(after: str | None, at_text: str | None) -> tuple[datetime | None, float]:
    """When the jobs are due: at an instant, or after so many seconds."""
    if after is not None and at_text is not None:
        raise ConfigError("give --after or --at, not both")
    if after is not None:
        return None, _seconds("--after", after)
    if at_text is None:
        return None, 0.0
    return instant(at_text, "--at"), 0.0


def _seconds(option: str, given: str) -> float:
    try:
        return parse_duration(given)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
