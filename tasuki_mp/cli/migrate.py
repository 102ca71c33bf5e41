"""`tasuki-mp migrate`: bring the database's schema up to date, or only tell whether it is."""

from __future__ import annotations

from pathlib import Path

import click

from tasuki_mp import migrate as migrations
from tasuki_mp import sql
from tasuki_mp.cli.database import connected, database_options, open_database
from tasuki_mp.config import ExitCode


@click.command
@database_options
@click.option("--check", "is_check", is_flag=True, help="Change nothing; exit with 4 if something is missing.")
def migrate(dsn: str | None, config_file: Path | None, is_check: bool) -> int:
    """Bring the database's schema up to date.

    Safe at any time, and from several machines at once.
    """
    with open_database(dsn, config_file) as database:
        click.echo(f"database {database.description}")
        with connected(database, name="migrate") as conn:
            if is_check:
                missing = migrations.pending(conn)
                for migration in missing:
                    click.echo(f"missing {migration.file_name}")
            else:
                missing = []
                for migration in migrations.migrate(conn):
                    click.echo(f"applied {migration.file_name}")
    newest = len(sql.migrations())
    if missing:
        click.echo(f"the schema lacks {len(missing)} of {newest} migrations: run `tasuki-mp migrate`")
        return ExitCode.DATABASE
    click.echo(f"the schema is up to date (version {newest})")
    return ExitCode.OK
