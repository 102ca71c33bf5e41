"""`tasuki-mp stack`: where a running job is."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import ID
from tasuki_mp.logs import escape
from tasuki_mp.store import commands
from tasuki_mp.store.steps import drive


@click.command(short_help="Show where a running job is.")
@click.argument("job_id", metavar="ID", type=ID)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=commands.DEFAULT_TIMEOUT,
    show_default=True,
    help="How long to wait for the host that runs it.",
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@database_options
def stack(dsn: str | None, config_file: Path | None, job_id: int, timeout: float, is_json: bool) -> None:
    """Show the Python stack of a running job, on whichever host it runs, also while C code holds its interpreter.

    Exits with 1 if the job does not run, or if its supervisor can't or doesn't answer.
    """
    with open_connection(dsn, config_file, name="stack") as (database, conn):
        say_which(database)
        found = drive(conn, commands.stack(job_id, timeout=timeout), commits=True)
    if is_json:
        click.echo(text.json_line({"id": job_id, **msgspec.structs.asdict(found)}))
        return
    where = f"on {escape(found.host)}, slot {found.slot}, pid {found.pid}"
    click.echo(f"job {job_id} has run for {text.duration(found.ran_for)} {where}")
    click.echo(escape(found.text, limit=None, keep="\n"))
