"""`tasuki-mp export`: finished jobs as lines of JSON, for whoever keeps them for longer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from tasuki_mp import sql
from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import jobs_of, moment, queue_name, require_text
from tasuki_mp.errors import ConfigError
from tasuki_mp.job import State
from tasuki_mp.store.look import Connection
from tasuki_mp.store.retention import partitions
from tasuki_mp.store.steps import drive

_EXPORT: Final = sql.query("export_jobs")
_LEAST: Final = 10
_MOST: Final = 5000
_CHARACTERS: Final = 4 * 1024 * 1024
"""That one statement brings at most, save for one job, so that memory stays bounded where jobs are large."""
_FINAL: Final = [state.value for state in State if state.is_final]


@click.command(short_help="Write finished jobs as lines of JSON.")
@click.option("--since", required=True, metavar="WHEN", help="Finished since then: 2h, 7d, or a time with its zone.")
@click.option("--until", metavar="WHEN", help="Finished before then; else before now.")
@click.option("--queue", metavar="NAME", help="In this queue.")
@click.option("--handler", metavar="NAME", help="Of this handler.")
@click.option("--state", "states", multiple=True, type=click.Choice(_FINAL), help="In this state; repeatable.")
@database_options
def export(
    dsn: str | None,
    config_file: Path | None,
    since: str,
    until: str | None,
    queue: str | None,
    handler: str | None,
    states: tuple[str, ...],
) -> None:
    """Write finished jobs to standard output, one JSON object a line, in memory that does not grow.

    Day by day, by id within a day. Live jobs are not in it, nor the history of attempts.
    """
    first = moment(since, "--since")
    last = datetime.now(UTC) if until is None else moment(until, "--until")
    if last <= first:
        raise ConfigError("--until is not after --since")
    require_text(handler, "--handler")
    parameters = {
        "queue": queue_name(queue, "--queue"),
        "handler": handler,
        "states": sorted(states) or None,
    }
    number = 0
    with open_connection(dsn, config_file, name="export") as (database, conn):
        say_which(database)
        for line in lines(conn, first, last, parameters):
            sys.stdout.write(line)
            number += 1
    if sys.stderr.isatty():
        click.echo(f"{jobs_of(number)} written", err=True)


def lines(conn: Connection, first: datetime, last: datetime, parameters: dict[str, Any]) -> Iterator[str]:
    """The jobs that finished in that time, each a line. Every statement is short: a long one would keep dead rows alive."""
    days = sorted({partition.begins for partition in drive(conn, partitions()) if partition.is_attached})
    for day in days:
        times = {"first": max(first, day), "last": min(last, day + timedelta(days=1))}
        if times["first"] >= times["last"]:
            continue
        after, portion = -(2**63), _LEAST
        while True:
            rows = conn.execute(
                _EXPORT,
                {**parameters, **times, "after": after, "most": portion, "characters": _CHARACTERS},
                prepare=False,
            ).fetchall()
            if not rows:
                break
            size = 0
            for _, line in rows:
                size += len(line)
                yield text.harmless(line) + "\n"
            after = rows[-1][0]
            portion = max(_LEAST, min(_MOST, 4 * portion, len(rows) * _CHARACTERS // size))
