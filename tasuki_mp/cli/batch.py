"""`tasuki-mp batch`: list batches, look at one, wait for its end, cancel it, try its failed jobs again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import ID, jobs_of
from tasuki_mp.cli.text import Cell, Table, print_tables
from tasuki_mp.client import Client
from tasuki_mp.config import ExitCode
from tasuki_mp.options import parse_duration
from tasuki_mp.store.batches import BatchLine, BatchStatus


class _Which(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """The id of a batch, or a name, which means the newest one of that name. Digits are a name where no batch has that id."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (1 <= len(value) <= 200 and value.isprintable() and value.strip()):
            self.fail(f"{value!r:.100} is no id or name of a batch", param, ctx)
        return str(value)


_which: Final = click.argument("which", type=_Which(), metavar="ID|NAME")
_json: Final = click.option("--json", "is_json", is_flag=True, help="JSON in place of a table.")


@click.group(short_help="Look at batches and steer them.")
def batch() -> None:
    """Jobs that were enqueued together: list, show, wait, cancel, retry-failed."""


@batch.command("list")
@click.option("--name", help="Only batches of this name.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, metavar="N", help="At most so many.  [50]")
@click.option("--before", type=ID, metavar="ID", help="Go on below this id.")
@_json
@database_options
def list_batches(
    dsn: str | None, config_file: Path | None, name: str | None, limit: int, before: int | None, is_json: bool
) -> None:
    """List batches, newest first."""
    with _client(dsn, config_file) as client:
        found = client.batches(name=name, before=before, limit=limit)
    if is_json:
        click.echo(text.json_line(found))
        return
    now = datetime.now(UTC)
    note = "" if found else "no batches"
    if len(found) == limit:
        note = f"more: --before {found[-1].id}"
    columns: list[tuple[str, text.Align]] = [
        ("ID", "right"),
        ("NAME", "left"),
        ("STATE", "left"),
        ("JOBS", "right"),
        ("COMPLETED", "right"),
        ("FAILED", "right"),
        ("CANCELED", "right"),
        ("WHEN", "right"),
    ]
    print_tables([Table(columns=columns, rows=[_row(line, now) for line in found], note=note)])


@batch.command()
@_which
@_json
@database_options
def show(dsn: str | None, config_file: Path | None, which: str, is_json: bool) -> None:
    """Show how a batch stands."""
    with _client(dsn, config_file) as client:
        status = client.batch(which).status()
    _print(status, is_json=is_json)


@batch.command()
@_which
@click.option("--timeout", metavar="TIME", help="Give up after that long, like 30m; the jobs go on.")
@_json
@database_options
def wait(dsn: str | None, config_file: Path | None, which: str, timeout: str | None, is_json: bool) -> None:
    """Wait until a batch has ended; exit 0 only if every job has completed."""
    try:
        seconds = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from None
    with _client(dsn, config_file) as client:
        try:
            *_, status = _shown(client.batch(which).watch(seconds))
        except TimeoutError as error:
            click.echo(f"tasuki-mp: {error}", err=True)
            sys.exit(ExitCode.TIMEOUT)
    _print(status, is_json=is_json)
    if not status.is_successful:
        sys.exit(ExitCode.NOT_COMPLETED)


@batch.command()
@_which
@database_options
def cancel(dsn: str | None, config_file: Path | None, which: str) -> None:
    """Cancel every job of a batch that has not ended; running ones are asked to stop."""
    with _client(dsn, config_file) as client:
        found = client.batch(which)
        count = found.cancel()
    click.echo(f"batch {found.id}: {jobs_of(count)} canceled or asked to stop")


@batch.command("retry-failed")
@_which
@database_options
def retry_failed(dsn: str | None, config_file: Path | None, which: str) -> None:
    """Try the failed and canceled jobs of a batch again, each as a new job of the same batch."""
    with _client(dsn, config_file) as client:
        found = client.batch(which)
        count = found.retry_failed()
    click.echo(f"batch {found.id}: {jobs_of(count)} enqueued again")


@contextmanager
def _client(dsn: str | None, config_file: Path | None) -> Iterator[Client]:
    with open_connection(dsn, config_file, name="batch") as (database, _):
        say_which(database)
        with Client(database.dsn) as client:
            yield client


def _shown(statuses: Iterator[BatchStatus]) -> Iterator[BatchStatus]:
    """The same, with a progress bar where somebody watches."""
    if not sys.stderr.isatty():
        yield from statuses
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("jobs")
        for status in statuses:
            done = status.total - status.pending - status.running
            bar.update(task, total=status.total, completed=max(0, done))
            yield status


def _row(line: BatchLine, now: datetime) -> list[Cell | str]:
    if line.ended_at is None:
        state = Cell("open" if line.is_sealed else "being filled", "green")
    elif line.failed or line.canceled:
        state = Cell("failed", "red")
    else:
        state = Cell("completed")
    counts = ("" if number is None else text.number(number) for number in (line.completed, line.failed, line.canceled))
    when = text.relative(line.ended_at or line.created_at, now)
    return [str(line.id), line.name or "", state, text.number(line.total), *counts, when]


def _print(status: BatchStatus, *, is_json: bool) -> None:
    if is_json:
        click.echo(text.json_line(status))
        return
    now = datetime.now(UTC)
    facts = [
        ("batch", f"{status.id}{f' ({status.name})' if status.name else ''}"),
        ("created", text.relative(status.created_at, now)),
        ("ended", text.relative(status.ended_at, now) if status.ended_at else "no, still being filled"),
        ("jobs", text.number(status.total)),
        ("pending", text.number(status.pending)),
        ("running", text.number(status.running)),
        ("completed", text.number(status.completed)),
        ("failed", text.number(status.failed)),
        ("canceled", text.number(status.canceled)),
        ("follow-ups", ", ".join(status.fired) or "none"),
    ]
    if status.ended_at is None and status.is_sealed:
        facts[2] = ("ended", "no")
    print_tables([Table(columns=[("", "left"), ("", "left")], rows=[list(fact) for fact in facts])])
