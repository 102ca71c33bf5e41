"""`tasuki-mp status`: what waits, what runs, who works."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import Database, connected, database_options, open_database
from tasuki_mp.cli.text import Cell, Table
from tasuki_mp.errors import DatabaseError, SchemaError
from tasuki_mp.migrate import check
from tasuki_mp.options import parse_duration
from tasuki_mp.store import look
from tasuki_mp.store.look import Status

FINAL: Final = ("completed", "failed", "canceled")
_REST: Final = 20
"""While watching, counting takes at most one part in so many of the time: nobody's status may be the load."""


@click.command
@database_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object; with --watch one a line.")
@click.option("--watch", "is_watching", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--every", default="1s", metavar="TIME", help="How often with --watch.  [1s]")
def status(dsn: str | None, config_file: Path | None, is_json: bool, is_watching: bool, every: str) -> None:
    """Show queues, running jobs, supervisors and handlers nobody knows."""
    try:
        interval = max(0.1, parse_duration(every))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--every") from None
    with open_database(dsn, config_file) as database:
        if is_watching and sys.stdout.isatty() and not is_json:
            _watch_screen(database, interval)
        elif is_watching:
            _watch_lines(database, interval, is_json=is_json)
        else:
            with connected(database, name="status") as conn:
                check(conn)
                _print(database, look.status(conn), is_json=is_json)


def _print(database: Database, now: Status, *, is_json: bool) -> None:
    if is_json:
        click.echo(text.json_line(as_json(database, now)))
        return
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, markup=False, soft_wrap=True)
        console.print(f"database {database.description}")
        for table in tables(now):
            console.print("", table.rich(console.width), sep="\n")
        return
    click.echo(f"database {database.description}")
    for table in tables(now):
        click.echo("\n" + table.plain())


def _watch_lines(database: Database, interval: float, *, is_json: bool) -> None:
    with connected(database, name="status") as conn:
        check(conn)
        while True:
            started = monotonic()
            _print(database, look.status(conn), is_json=is_json)
            if not is_json:
                click.echo()
            sys.stdout.flush()
            _rest(interval, monotonic() - started)


def _watch_screen(database: Database, interval: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            started = monotonic()
            try:
                with connected(database, name="status") as conn:
                    check(conn)
                    while True:
                        started = monotonic()
                        width, height = live.console.size
                        body = [table.rich(width) for table in tables(look.status(conn), room=height)]
                        stamp = f"{datetime.now().astimezone():%H:%M:%S}"
                        head = Text(f"database {database.description} · {stamp} · Ctrl-C ends")
                        live.update(Text("\n\n").join([head, *body]), refresh=True)
                        _rest(interval, monotonic() - started)
            except SchemaError:
                raise
            except DatabaseError as error:
                # A restart of the database ends no watch: that is when one looks most.
                live.update(Text(f"{error}\ntrying again…", style="red"), refresh=True)
                _rest(interval, monotonic() - started)


def _rest(interval: float, took: float) -> None:
    threading.Event().wait(max(interval - took, took * _REST, 0.05))


def tables(now: Status, *, room: int | None = None) -> list[Table]:
    """The status as tables; `room` is the height of the screen, so that running jobs leave space for the rest."""
    queues = _queues(now)
    supervisors = _supervisors(now)
    unknown = _unknown(now)
    others = sum(len(table.rows) + 4 for table in (queues, supervisors, unknown) if table is not None)
    most = len(now.running) if room is None else max(3, room - others - 7)
    return [table for table in (queues, _running(now, most), supervisors, unknown) if table is not None]


def _queues(now: Status) -> Table:
    final: dict[str, dict[str, int]] = defaultdict(dict)
    for count in now.final or ():
        final[count.queue][count.status] = count.jobs
    depths = {depth.queue: depth for depth in now.queues}
    rows: list[list[Cell | str]] = []
    for queue in sorted({*depths, *final}):
        depth = depths.get(queue)
        name = f"{queue} (paused)" if depth is not None and depth.paused_at is not None else queue
        live = [0, 0, 0, 0] if depth is None else [depth.due, depth.scheduled, depth.held, depth.running]
        ends = ["?" if now.final is None else text.number(final[queue].get(state, 0)) for state in FINAL]
        oldest = text.duration(depth.oldest_due) if depth is not None and depth.due else "-"
        failed = Cell(ends[1], "red") if ends[1] not in ("0", "?") else Cell(ends[1])
        rows.append([name, *map(text.number, live), ends[0], failed, ends[2], oldest])
    note = "" if rows else "no jobs"
    if now.final is None:
        note = "? the archive was too large to be counted in time"
    headings = ("due", "later", "held", "running", *FINAL, "oldest")
    return Table(
        columns=[("QUEUE", "left"), *((heading.upper(), "right") for heading in headings)],
        rows=rows,
        note=note,
    )


def _running(now: Status, most: int) -> Table | None:
    if not now.running:
        return None
    rows: list[list[Cell | str]] = []
    for job in now.running[:most]:
        state = Cell("expired", "red") if job.is_expired else Cell("")
        if job.interruptions and not job.is_expired:
            state = Cell(f"interrupted {text.times(job.interruptions)}", "dim")
        if job.is_cancel_requested:
            state = Cell("canceling", "yellow")
        rows.append(
            [
                str(job.id),
                job.handler,
                job.queue,
                f"{job.attempt}/{job.max_attempts}",
                job.host or "?",
                "-" if job.pid is None else str(job.pid),
                "-" if job.slot is None else str(job.slot),
                "new" if job.age is None else text.duration(job.age),
                text.progress(job.progress, job.progress_note),
                state,
            ]
        )
    hidden = now.running_total - len(rows)
    return Table(
        title=f"running: {text.number(now.running_total)}",
        columns=[
            ("ID", "right"),
            ("HANDLER", "left"),
            ("QUEUE", "left"),
            ("ATTEMPT", "right"),
            ("HOST", "left"),
            ("PID", "right"),
            ("SLOT", "right"),
            ("AGE", "right"),
            ("PROGRESS" if any(job.progress is not None or job.progress_note for job in now.running) else "", "left"),
            ("", "left"),
        ],
        rows=rows,
        note=f"and {text.number(hidden)} more" if hidden > 0 else "",
    )


def _supervisors(now: Status) -> Table:
    moment = datetime.now(UTC)
    rows: list[list[Cell | str]] = [
        [
            supervisor.host,
            str(supervisor.pid),
            supervisor.version,
            f"{supervisor.running}/{supervisor.procs}",
            text.duration(max(0.0, (moment - supervisor.started_at).total_seconds())),
            Cell(f"silent for {text.duration(supervisor.seen_ago)}", "red")
            if supervisor.is_stale
            else Cell("alive", "green"),
            ",".join(supervisor.queues) or "all",
        ]
        for supervisor in now.supervisors
    ]
    living = sum(not supervisor.is_stale for supervisor in now.supervisors)
    return Table(
        title=f"supervisors: {living}",
        columns=[
            ("HOST", "left"),
            ("PID", "right"),
            ("VERSION", "left"),
            ("BUSY", "right"),
            ("UP", "right"),
            ("STATE", "left"),
            ("QUEUES", "left"),
        ],
        rows=rows,
        note="" if living else "nobody works on this database: start `tasuki-mp run`",
    )


def _unknown(now: Status) -> Table | None:
    if not now.unknown_handlers:
        return None
    return Table(
        title="handlers that no living supervisor knows",
        columns=[("HANDLER", "left"), ("PENDING", "right")],
        rows=[[handler, text.number(jobs)] for handler, jobs in now.unknown_handlers.items()],
    )


def as_json(database: Database, now: Status) -> dict[str, object]:
    """The status for programs: a contract, names may be added but not changed."""
    final: dict[str, dict[str, int]] = defaultdict(dict)
    for count in now.final or ():
        final[count.queue][count.status] = count.jobs
    depths = {depth.queue: depth for depth in now.queues}
    queues = {}
    for queue in sorted({*depths, *final}):
        depth = depths.get(queue) or look.QueueDepth(queue=queue, due=0, scheduled=0, held=0, running=0, oldest_due=0)
        queues[queue] = {
            "pending": depth.due + depth.scheduled + depth.held,
            "due": depth.due,
            "scheduled": depth.scheduled,
            "held": depth.held,
            "running": depth.running,
            **{state: None if now.final is None else final[queue].get(state, 0) for state in FINAL},
            "oldest_due_seconds": depth.oldest_due if depth.due else None,
            "paused_at": depth.paused_at,
        }
    return {
        "database": database.description,
        "queues": queues,
        "running_total": now.running_total,
        "running": now.running,
        "supervisors": now.supervisors,
        "unknown_handlers": now.unknown_handlers,
    }
