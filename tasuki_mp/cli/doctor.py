"""`tasuki-mp doctor`: what is wrong with the database, the fleet and the queues, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from tasuki_mp import migrate
from tasuki_mp.cli import text
from tasuki_mp.cli.database import Database, connected, database_options, open_database
from tasuki_mp.config import ExitCode
from tasuki_mp.errors import DatabaseError, SchemaError
from tasuki_mp.logs import escape
from tasuki_mp.store import doctor as checks
from tasuki_mp.store.judgements import Finding, Severity

_STYLES: Final[dict[Severity, str]] = {"problem": "red", "warning": "yellow", "note": "cyan"}
_CODES: Final[dict[Severity, ExitCode]] = {
    "problem": ExitCode.PROBLEMS,
    "warning": ExitCode.WARNINGS,
    "note": ExitCode.OK,
}


@click.command(short_help="Look for what is wrong.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object: the findings, the worst first.")
@database_options
def doctor(dsn: str | None, config_file: Path | None, is_json: bool) -> int:
    """Look for what is wrong with the database, the supervisors and the queues, and say what to do about it.

    Exits with 0 if there is nothing worse than a note, 10 if there are warnings, 11 if there are problems, 4 if the
    database can't be asked.
    """
    with open_database(dsn, config_file) as database:
        try:
            findings, code = _examine(database)
        except DatabaseError as error:
            advice = "is the server up, the dsn right, and may this host and role connect? See docs/operations.md"
            findings, code = [Finding("connection", "problem", str(error), advice)], ExitCode.DATABASE
    if is_json:
        click.echo(text.json_line({"database": database.description, "findings": findings}))
        return code
    click.echo(f"database {database.description}")
    for finding in findings:
        click.echo()
        click.echo(f"{click.style(finding.severity, fg=_STYLES[finding.severity])}: {escape(finding.what)}")
        click.echo(f"  {escape(finding.advice)}")
    if not findings:
        click.echo("nothing is wrong")
    return code


def _examine(database: Database) -> tuple[list[Finding], ExitCode]:
    with connected(database, name="doctor") as conn:
        try:
            migrate.check(conn)
        except SchemaError as error:
            return [Finding("schema", "problem", str(error), "tasuki-mp migrate")], ExitCode.PROBLEMS
        findings = checks.examine(conn)
    return findings, _CODES[findings[0].severity] if findings else ExitCode.OK
