"""`tasuki-mp queue`: list queues, pause, resume and limit them, and say how long their finished jobs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import queue_name
from tasuki_mp.cli.text import Cell, Table, print_tables
from tasuki_mp.errors import ConfigError
from tasuki_mp.options import parse_duration
from tasuki_mp.store import look, queues
from tasuki_mp.store.look import QueueDepth
from tasuki_mp.store.queues import Queue
from tasuki_mp.store.steps import drive

LEAST_KEPT: Final = 60.0
_name_argument: Final = click.argument("name", metavar="QUEUE")


@click.group(short_help="List, pause, resume and limit queues.")
def queue() -> None:
    """Look at queues and steer them."""


@queue.command("list")
@click.option("--json", "is_json", is_flag=True, help="One JSON object: a queue's name to what is known of it.")
@database_options
def list_queues(dsn: str | None, config_file: Path | None, is_json: bool) -> None:
    """List queues: those that have jobs, a handler declares, a supervisor works on, or that something was said about."""
    with open_connection(dsn, config_file, name="queue") as (database, conn):
        say_which(database)
        known = drive(conn, queues.queues())
        with look.snapshot(conn):
            depths = look.queue_depths(conn)
    every = _joined(known, depths)
    if is_json:
        click.echo(text.json_line({queue.name: _as_json(queue, depth) for queue, depth in every}))
    else:
        print_tables([_table(every)])


@queue.command()
@_name_argument
@database_options
def pause(dsn: str | None, config_file: Path | None, name: str) -> None:
    """Lease nothing more from a queue. What runs goes on; jobs can still be enqueued."""
    queue_name(name, "QUEUE")
    with open_connection(dsn, config_file, name="queue") as (database, conn):
        say_which(database)
        is_changed = drive(conn, queues.pause(name))
    click.echo(f"{name}: {'paused' if is_changed else 'was paused already'}")


@queue.command()
@_name_argument
@database_options
def resume(dsn: str | None, config_file: Path | None, name: str) -> None:
    """Lease from a paused queue again; supervisors look at once."""
    queue_name(name, "QUEUE")
    with open_connection(dsn, config_file, name="queue") as (database, conn):
        say_which(database)
        is_changed = drive(conn, queues.resume(name))
    click.echo(f"{name}: {'resumed' if is_changed else 'was not paused'}")


@queue.command()
@_name_argument
@click.option("--max-running", type=click.IntRange(0, 2**31 - 1), metavar="N", help="At most so many run at a time.")
@click.option(
    "--max-running-per-key",
    type=click.IntRange(1, 2**31 - 1),
    metavar="N",
    help="At most so many with the same key run at a time.",
)
@click.option("--none", "is_lifted", is_flag=True, help="No limits any more.")
@database_options
def limit(
    dsn: str | None,
    config_file: Path | None,
    name: str,
    max_running: int | None,
    max_running_per_key: int | None,
    is_lifted: bool,
) -> None:
    """Limit how many jobs of a queue run at a time in the whole fleet; what is not given is no limit."""
    queue_name(name, "QUEUE")
    if is_lifted == (max_running is not None or max_running_per_key is not None):
        raise ConfigError("say --max-running, --max-running-per-key or both; or --none alone, to lift the limits")
    with open_connection(dsn, config_file, name="queue") as (database, conn):
        say_which(database)
        drive(conn, queues.limit(name, max_running=max_running, max_running_per_key=max_running_per_key))
    limits = [
        f"at most {text.number(number)} {what}"
        for number, what in ((max_running, "run at a time"), (max_running_per_key, "of one key run at a time"))
        if number is not None
    ]
    click.echo(f"{name}: {', '.join(limits) or 'no limits'}")


@queue.command()
@_name_argument
@click.argument("time", metavar="TIME|default")
@database_options
def keep(dsn: str | None, config_file: Path | None, name: str, time: str) -> None:
    """Keep a queue's finished jobs for a shorter TIME than all others, like 2h; `default` ends that."""
    queue_name(name, "QUEUE")
    seconds = None
    if time != "default":
        try:
            seconds = parse_duration(time)
        except ValueError as error:
            raise ConfigError(f"TIME: {error}") from None
        if seconds < LEAST_KEPT:
            raise ConfigError(f"TIME: {time!r} is less than a minute")
    with open_connection(dsn, config_file, name="queue") as (database, conn):
        say_which(database)
        drive(conn, queues.keep(name, seconds))
    kept = "as long as all others" if seconds is None else f"for {text.duration(seconds)}"
    click.echo(f"{name}: finished jobs are kept {kept}")


def _joined(known: Sequence[Queue], depths: Sequence[QueueDepth]) -> list[tuple[Queue, QueueDepth]]:
    by_name = {queue.name: queue for queue in known}
    depth_of = {depth.queue: depth for depth in depths}
    return [
        (
            by_name.get(name) or Queue(name),
            depth_of.get(name) or QueueDepth(queue=name, due=0, scheduled=0, held=0, running=0, oldest_due=0),
        )
        for name in sorted({*by_name, *depth_of})
    ]


def _table(every: Sequence[tuple[Queue, QueueDepth]]) -> Table:
    now = datetime.now(UTC)
    rows: list[list[Cell | str]] = []
    for queue, depth in every:
        state = Cell("open", "green")
        if queue.paused_at is not None:
            state = Cell(f"paused {text.relative(queue.paused_at, now)}", "yellow")
        elif not queue.supervisors and depth.due:
            state = Cell("nobody works on it", "red")
        limits = [
            "" if limit is None else text.number(limit) for limit in (queue.max_running, queue.max_running_per_key)
        ]
        numbers = [depth.due, depth.scheduled, depth.held, depth.running, queue.supervisors]
        kept = "" if queue.keep_seconds is None else text.duration(queue.keep_seconds)
        rows.append([queue.name, state, *map(text.number, numbers), *limits, kept])
    headings = ("due", "later", "held", "running", "supervisors", "at most", "per key", "kept")
    return Table(
        columns=[("QUEUE", "left"), ("STATE", "left"), *((heading.upper(), "right") for heading in headings)],
        rows=rows,
        note="" if rows else "no queues",
    )


def _as_json(queue: Queue, depth: QueueDepth) -> dict[str, object]:
    return {
        "paused_at": queue.paused_at,
        "keep_seconds": queue.keep_seconds,
        "max_running": queue.max_running,
        "max_running_per_key": queue.max_running_per_key,
        "supervisors": queue.supervisors,
        "due": depth.due,
        "scheduled": depth.scheduled,
        "held": depth.held,
        "running": depth.running,
    }
