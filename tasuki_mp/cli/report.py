"""`tasuki-mp report`: what the jobs of each handler came to, out of the ledger of attempts."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import moment
from tasuki_mp.cli.text import Cell, Table, print_tables
from tasuki_mp.store import look
from tasuki_mp.store.look import HandlerReport

COLUMNS = (
    *("handler", "jobs", "completed", "failed", "canceled", "retried", "cpu_seconds"),
    *("ran_p50", "ran_p95", "ran_p99", "waited_p50", "waited_p95", "waited_p99", "memory_peak"),
)


@click.command(short_help="Sum up what each handler's jobs took.")
@click.option("--since", default="24h", metavar="WHEN", help="Ended since then: 2h, or a time with zone.  [24h]")
@click.option("--json", "is_json", is_flag=True, help="A list of JSON objects.")
@click.option("--csv", "is_csv", is_flag=True, help="Comma-separated values with a header.")
@database_options
def report(dsn: str | None, config_file: Path | None, since: str, is_json: bool, is_csv: bool) -> None:
    """Sum up, for each handler, the attempts that ended since WHEN: how they ended, CPU time, runtime, wait, memory.

    Seconds and bytes; p50, p95 and p99 are the times that so many of a hundred attempts stayed below.
    """
    if is_json and is_csv:
        raise click.UsageError("--json or --csv, not both")
    begin = moment(since, "--since")
    with open_connection(dsn, config_file, name="report") as (database, conn):
        say_which(database)
        with look.snapshot(conn, timeout=600):
            rows = look.report(conn, since=begin)
    if is_json:
        click.echo(text.json_line([msgspec.structs.asdict(row) for row in rows]))
    elif is_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in _values(row)] for row in rows)
    else:
        print_tables([_table(rows, begin)])


def _values(row: HandlerReport) -> list[object]:
    return [getattr(row, column) for column in COLUMNS]


def _table(rows: list[HandlerReport], since: datetime) -> Table:
    def seconds(value: float | None) -> str:
        return "" if value is None else text.duration(value)

    def triple(*values: float | None) -> str:
        return " / ".join(seconds(value) or "-" for value in values)

    ago = text.duration(max(0.0, (datetime.now(UTC) - since) / timedelta(seconds=1)))
    return Table(
        title=f"ended in the last {ago}",
        columns=[
            ("HANDLER", "left"),
            *((heading, "right") for heading in ("JOBS", "COMPLETED", "FAILED", "CANCELED", "RETRIED", "CPU")),
            ("RAN P50 / P95 / P99", "right"),
            ("WAITED P50 / P95 / P99", "right"),
            ("PEAK", "right"),
        ],
        rows=[
            [
                row.handler,
                text.number(row.jobs),
                text.number(row.completed),
                Cell(text.number(row.failed), "red" if row.failed else ""),
                text.number(row.canceled),
                text.number(row.retried),
                seconds(row.cpu_seconds),
                triple(row.ran_p50, row.ran_p95, row.ran_p99),
                triple(row.waited_p50, row.waited_p95, row.waited_p99),
                "" if row.memory_peak is None else text.size(row.memory_peak),
            ]
            for row in rows
        ],
        note="" if rows else "no attempt has ended since then",
    )
