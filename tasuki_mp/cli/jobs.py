"""`tasuki-mp jobs list`: jobs that match, newest first, live and finished alike."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import ID, filter_options, job_filter
from tasuki_mp.cli.text import Cell, Table, print_tables
from tasuki_mp.store import select
from tasuki_mp.store.select import JobPage, JobSummary
from tasuki_mp.store.steps import drive

_STYLES: dict[str, text.Style] = {"running": "green", "failed": "red", "canceled": "yellow"}


@click.group(short_help="List jobs.")
def jobs() -> None:
    """Look at jobs; see also show, cancel, retry, delete, move and reschedule."""


@jobs.command("list", short_help="List jobs, newest first.")
@filter_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, metavar="N", help="At most so many.  [50]")
@click.option("--cursor", type=ID, help="Go on below this id, as the last page says.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object: the jobs and the next cursor.")
@database_options
def list_jobs(
    dsn: str | None, config_file: Path | None, limit: int, cursor: int | None, is_json: bool, **filters: Any
) -> None:
    """List jobs, newest first, whether they wait, run or have finished."""
    which = job_filter(**filters)
    with open_connection(dsn, config_file, name="jobs") as (database, conn):
        say_which(database)
        page = drive(conn, select.page(which, limit=limit, cursor=cursor))
    if is_json:
        click.echo(text.json_line({"jobs": page.jobs, "cursor": page.cursor}))
    else:
        print_tables([table(page, datetime.now(UTC))])


def table(page: JobPage, now: datetime) -> Table:
    """The jobs as a table; its note says how to see more."""
    note = "" if page.jobs else "no jobs"
    if page.cursor is not None:
        note = f"more: --cursor {page.cursor}"
    return Table(
        columns=[
            ("ID", "right"),
            ("STATE", "left"),
            ("HANDLER", "left"),
            ("QUEUE", "left"),
            ("ATTEMPT", "right"),
            ("WHEN", "right"),
            ("RAN", "right"),
            ("ERROR", "left"),
        ],
        rows=[_row(job, now) for job in page.jobs],
        note=note,
    )


def _row(job: JobSummary, now: datetime) -> list[Cell | str]:
    state: str = job.state
    if job.is_cancel_requested:
        state = "canceling"
    elif job.held_by is not None:
        state = f"held: {job.held_by}"
    when = job.finished_at or job.started_at or job.scheduled_at
    ran = ""
    if job.started_at is not None:
        ran = text.duration(max(0.0, ((job.finished_at or now) - job.started_at).total_seconds()))
    return [
        str(job.id),
        Cell(state, _STYLES.get(job.state, "")),
        job.handler,
        job.queue,
        f"{job.attempt}/{job.max_attempts}",
        text.relative(when, now),
        ran,
        job.error or "",
    ]
