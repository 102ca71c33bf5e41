"""`tasuki-mp cancel`: stop jobs for good."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.config import ExitCode
from tasuki_mp.store import produce

_MEANINGS: Final = {
    "canceled": "canceled",
    "requested": "runs; its supervisor stops it within a second or so",
    "finished": "had ended before",
    "unknown": "there is no such job",
}


@click.command(short_help="Cancel jobs.")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1))
@click.option("--json", "is_json", is_flag=True, help="One JSON object: id to verdict.")
@database_options
def cancel(dsn: str | None, config_file: Path | None, ids: tuple[int, ...], is_json: bool) -> int:
    """Cancel jobs: pending ones at once, running ones as soon as their supervisor hears of it.

    Exits with 1 if there is no such job; one that had ended before is no error.
    """
    with open_connection(dsn, config_file, name="cancel") as (database, conn):
        say_which(database)
        verdicts = produce.verdicts(conn.execute(produce.CANCEL, produce.cancel_parameters(ids)))
    if is_json:
        click.echo(text.json_line({str(job_id): verdict for job_id, verdict in verdicts.items()}))
    else:
        width = max(len(str(job_id)) for job_id in verdicts)
        for job_id, verdict in verdicts.items():
            click.echo(f"{job_id:>{width}}  {_MEANINGS[verdict]}", err=verdict == "unknown")
    return ExitCode.FAILED if "unknown" in verdicts.values() else ExitCode.OK
