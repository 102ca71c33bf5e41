"""`tasuki-mp prune`: drop what has been kept for long enough, as supervisors do every hour."""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from tasuki_mp import migrate
from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, explain, open_database, say_which
from tasuki_mp.cli.selection import jobs_of
from tasuki_mp.config import ExitCode, keep_config
from tasuki_mp.store.connect import connect
from tasuki_mp.store.retention import LOCK_TIMEOUT, STATEMENT_TIMEOUT, Pruned
from tasuki_mp.store.retention import prune as prune_steps
from tasuki_mp.store.steps import drive


@click.command(short_help="Drop finished jobs that have been kept for long enough.")
@click.option("--keep-completed", metavar="TIME", help="How long completed jobs are kept, or `forever`.  [7d]")
@click.option("--keep-failed", metavar="TIME", help="How long failed and canceled jobs are kept.  [30d]")
@click.option("--dry-run", "is_dry", is_flag=True, help="Only say which days would be dropped.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@database_options
def prune(
    dsn: str | None,
    config_file: Path | None,
    keep_completed: str | None,
    keep_failed: str | None,
    is_dry: bool,
    is_json: bool,
) -> int:
    """Drop finished jobs, attempts and checkpoints that have been kept for long enough, in days as a whole.

    Supervisors do the same every hour. How long is looked up where `run` looks. Exits with 1 if a day had to wait.
    """
    given = {"keep-completed": keep_completed, "keep-failed": keep_failed}
    keep = keep_config(given, config_file=config_file)
    with open_database(dsn, config_file) as database:
        say_which(database)
        try:
            with connect(
                database.dsn, name="prune", statement_timeout=STATEMENT_TIMEOUT, lock_timeout=LOCK_TIMEOUT
            ) as conn:
                migrate.check(conn)
                pruned = drive(conn, prune_steps(keep, dry_run=is_dry))
        except psycopg.Error as error:
            raise explain(error, database) from error
    _report(pruned, is_dry=is_dry, is_json=is_json)
    return ExitCode.FAILED if pruned.postponed else ExitCode.OK


def _report(pruned: Pruned, *, is_dry: bool, is_json: bool) -> None:
    if is_json:
        partitions = [
            {"name": p.name, "day": p.day, "rows": p.rows, "bytes": p.bytes, "is_attached": p.is_attached}
            for p in pruned.dropped
        ]
        facts = {
            "dropped": partitions,
            "postponed": pruned.postponed,
            "deleted": pruned.deleted,
            "batches": pruned.batches,
        }
        click.echo(text.json_line({**facts, "is_dry_run": is_dry}))
        return
    for partition in pruned.dropped:
        size = f"about {text.number(partition.rows)} rows, {text.size(partition.bytes)}"
        click.echo(f"{'would be ' if is_dry else ''}dropped: {partition.name} ({size})")
    for queue, number in pruned.deleted.items():
        click.echo(f"deleted: {jobs_of(number)} of queue {queue}")
    if pruned.batches:
        click.echo(f"deleted: {text.number(pruned.batches)} {'batch' if pruned.batches == 1 else 'batches'}")
    for name, reason in pruned.postponed.items():
        click.echo(f"postponed: {name}, {reason}", err=True)
    if not (pruned.dropped or pruned.deleted or pruned.batches or pruned.postponed):
        click.echo("nothing has been kept for too long")
