"""`tasuki-mp cancel`: stop jobs for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.change import change_options, run
from tasuki_mp.cli.database import open_connection, say_which
from tasuki_mp.config import ExitCode
from tasuki_mp.store import change, produce

_MEANINGS: Final = {
    "canceled": "canceled",
    "requested": "runs; it is asked to end, and killed after its grace",
    "finished": "had ended before",
    "unknown": "there is no such job",
}


@click.command(short_help="Cancel jobs.")
@change_options
def cancel(**options: Any) -> int:
    """Cancel jobs: pending ones at once, running ones as soon as their supervisor hears of it.

    Exits with 1 if there is no such job; one that had ended before is no error.
    """
    has_filter = any(options[name] for name in ("queue", "handler", "key", "batch", "states", "since", "error"))
    if not options["ids"] or has_filter or options["is_dry"]:
        return run(change.CANCEL, options)
    return _by_ids(options["dsn"], options["config_file"], options["ids"], is_json=options["is_json"])


def _by_ids(dsn: str | None, config_file: Path | None, ids: tuple[int, ...], *, is_json: bool) -> int:
    """Whoever names single jobs wants to know for sure what came of each, so this waits for whoever has one locked."""
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
