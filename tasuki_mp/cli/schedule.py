"""`tasuki-mp schedule`: list schedules, see when they tick and what became of it, run, pause and remove them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final

import click
import msgspec

from tasuki_mp import timetable
from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.text import Cell, Table, print_tables
from tasuki_mp.errors import ScheduleError, TasukiError
from tasuki_mp.store import schedules
from tasuki_mp.store.look import Connection
from tasuki_mp.store.schedules import ScheduleRow, TickInfo
from tasuki_mp.store.steps import drive

_MEANINGS: Final = {
    "fired": "fired",
    "manual": "run by hand",
    "missed": "missed: came too late",
    "overlap": "left out: an earlier one was still at work",
}
_name_argument: Final = click.argument("name", metavar="NAME")


class ScheduleUnknownError(TasukiError):
    """There is no schedule of that name."""


@click.group(short_help="List, run, pause and resume schedules; see when they tick.")
def schedule() -> None:
    """Look at schedules and steer them."""


@schedule.command("list")
@click.option("--json", "is_json", is_flag=True, help="One JSON array of objects.")
@database_options
def list_schedules(dsn: str | None, config_file: Path | None, is_json: bool) -> None:
    """List all schedules: when each ticks next and ticked last, and whether a living program minds it."""
    with _connected(dsn, config_file) as conn:
        rows = drive(conn, schedules.look())
    if is_json:
        click.echo(text.json_line([_as_json(row) for row in rows]))
    elif rows:
        print_tables([_table(rows)])
    else:
        click.echo("there are no schedules")


@schedule.command("next")
@_name_argument
@click.option("--count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many ticks.")
@click.option("--json", "is_json", is_flag=True, help="One JSON array of times, in UTC.")
@database_options
def next_ticks(dsn: str | None, config_file: Path | None, name: str, count: int, is_json: bool) -> None:
    """Show the next ticks of a schedule, on the clock of its time zone."""
    with _connected(dsn, config_file) as conn:
        row = _known(conn, name)
    ticks = list(islice(row.times.ticks(max(row.now, row.decided_until)), count))
    if is_json:
        click.echo(text.json_line(ticks))
        return
    zone = timetable.time_zone(row.tz)
    for tick in ticks:
        ahead = text.duration((tick - row.now).total_seconds())
        click.echo(f"{tick.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}  in {ahead}")
    if row.paused_at is not None:
        click.echo("the schedule is paused: none of these fires before it is resumed", err=True)
    elif not row.is_known:
        click.echo("no living program minds this schedule: none of these fires before one is started", err=True)
    if not ticks:
        click.echo("it ticks no more", err=True)


@schedule.command()
@_name_argument
@click.option("--json", "is_json", is_flag=True, help='Print {"id": 12}.')
@database_options
def run(dsn: str | None, config_file: Path | None, name: str, is_json: bool) -> None:
    """Insert a job of a schedule now, whatever its times say, and print its id."""
    with _connected(dsn, config_file) as conn:
        job_id = drive(conn, schedules.run(name))
    if job_id is None:
        raise _unknown(name)
    click.echo(text.json_line({"id": job_id}) if is_json else str(job_id))


@schedule.command()
@_name_argument
@database_options
def pause(dsn: str | None, config_file: Path | None, name: str) -> None:
    """Let a schedule tick no more, also across deploys, until it is resumed."""
    _pause(dsn, config_file, name, is_paused=True)


@schedule.command()
@_name_argument
@database_options
def resume(dsn: str | None, config_file: Path | None, name: str) -> None:
    """Let a paused schedule tick again, from now on."""
    _pause(dsn, config_file, name, is_paused=False)


@schedule.command()
@_name_argument
@database_options
def remove(dsn: str | None, config_file: Path | None, name: str) -> None:
    """Remove a schedule that no living program declares, with its history. Its jobs stay."""
    with _connected(dsn, config_file) as conn:
        if not drive(conn, schedules.remove(name)):
            raise _unknown(name)
    click.echo(f"{text.one_line(name)}: removed")


@schedule.command()
@_name_argument
@click.option("--limit", type=click.IntRange(1, schedules.TICKS_KEPT), default=20, show_default=True, help="How many.")
@click.option("--json", "is_json", is_flag=True, help="One JSON array of objects.")
@database_options
def history(dsn: str | None, config_file: Path | None, name: str, limit: int, is_json: bool) -> None:
    """Show the latest ticks of a schedule, newest first, and what became of their jobs."""
    with _connected(dsn, config_file) as conn:
        row = _known(conn, name)
        ticks = drive(conn, schedules.history(name, limit=limit))
    if is_json:
        click.echo(text.json_line([_tick_json(tick) for tick in ticks]))
    elif ticks:
        print_tables([_history_table(row, ticks)])
    else:
        click.echo("it has not ticked yet")


@contextmanager
def _connected(dsn: str | None, config_file: Path | None) -> Iterator[Connection]:
    with open_connection(dsn, config_file, name="schedule") as (database, conn):
        say_which(database)
        yield conn


def _known(conn: Connection, name: str) -> ScheduleRow:
    rows = drive(conn, schedules.look(name))
    if not rows:
        raise _unknown(name)
    return rows[0]


def _unknown(name: str) -> ScheduleUnknownError:
    return ScheduleUnknownError(f"there is no schedule {name!r}; tasuki-mp schedule list shows those that there are")


def _pause(dsn: str | None, config_file: Path | None, name: str, *, is_paused: bool) -> None:
    with _connected(dsn, config_file) as conn:
        if not drive(conn, schedules.pause(name, is_paused=is_paused)):
            raise _unknown(name)
    click.echo(f"{text.one_line(name)}: {'paused' if is_paused else 'resumed'}")


def _next(row: ScheduleRow) -> datetime | None:
    """When it ticks next, if this machine knows its time zone."""
    try:
        return next(row.times.ticks(max(row.now, row.decided_until)), None)
    except ScheduleError:
        return None


def _state(row: ScheduleRow) -> Cell:
    if row.paused_at is not None:
        return Cell("paused", "yellow")
    if not row.is_known:
        return Cell("no program", "red")
    return Cell("active", "green")


def _table(rows: list[ScheduleRow]) -> Table:
    unknown = sum(not row.is_known for row in rows)
    return Table(
        columns=[
            *(("SCHEDULE", "left"), ("STATE", "left"), ("WHEN", "left"), ("ZONE", "left"), ("HANDLER", "left")),
            *(("NEXT", "right"), ("LAST", "right")),
        ],
        rows=[
            [
                row.name,
                _state(row),
                row.timetable,
                "" if row.timetable.startswith("every ") else row.tz,
                row.handler,
                _ahead(row),
                "" if row.last_tick is None else f"{text.duration((row.now - row.last_tick).total_seconds())} ago",
            ]
            for row in rows
        ],
        note=""
        if not unknown
        else f"{unknown} of them no living program minds: start one that declares it (or, for a stored one, knows its "
        "handler), or remove it",
    )


def _ahead(row: ScheduleRow) -> str:
    tick = _next(row)
    if tick is None or row.paused_at is not None or not row.is_known:
        return ""
    return f"in {text.duration((tick - row.now).total_seconds())}"


def _as_json(row: ScheduleRow) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(row, name) for name in row.__struct_fields__ if name != "now"}
    fields["payload"] = msgspec.Raw(row.payload.encode())
    fields["limits"] = None if row.limits is None else msgspec.Raw(row.limits.encode())
    return {**fields, "next_tick": _next(row)}


def _tick_json(tick: TickInfo) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(tick, name) for name in tick.__struct_fields__}
    fields["result"] = None if tick.result is None else msgspec.Raw(tick.result.encode())
    return fields


def _history_table(row: ScheduleRow, ticks: list[TickInfo]) -> Table:
    zone = timetable.time_zone(row.tz)
    return Table(
        columns=[
            *(("TICK", "left"), ("LATE", "right"), ("WHAT", "left"), ("JOB", "right"), ("STATE", "left")),
            *(("RAN", "right"), ("RESULT", "left")),
        ],
        rows=[
            [
                f"{tick.tick.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}",
                text.duration(max(timedelta(), tick.decided_at - tick.tick).total_seconds())
                if tick.verdict != "manual"
                else "",
                _what(tick),
                "" if tick.job_id is None else str(tick.job_id),
                tick.state or "",
                "" if tick.ran_for is None else text.duration(tick.ran_for),
                (tick.result or "")[:60],
            ]
            for tick in ticks
        ],
    )


def _what(tick: TickInfo) -> str:
    passed = (
        f"; {tick.passed_over}{'+' if tick.passed_over >= 999 else ''} before it missed" if tick.passed_over else ""
    )
    return _MEANINGS[tick.verdict] + passed
