"""`tasuki-mp run`: the supervisor, started with what the command line, the environment and the files say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import psycopg

from tasuki_mp import logs
from tasuki_mp import migrate as migrations
from tasuki_mp.cli import exit_code
from tasuki_mp.cli.database import Database, connected, database_options, explain, open_database
from tasuki_mp.config import RunConfig, run_config
from tasuki_mp.errors import TasukiError
from tasuki_mp.version import __version__


@click.command(short_help="Run jobs until stopped.")
@click.option("--app", metavar="MODULE:NAME", help="The application, like shop.jobs:app. Required, here or in a file.")
@click.option("--app-dir", metavar="DIR", help="Where to import it from; else the working directory.")
@click.option("--procs", metavar="N", help="How many jobs run at once; else as many as cores may be used.")
@click.option("--memory-limit", metavar="SIZE", help="Memory for all jobs together; else what the host may use.")
@click.option("--max-jobs-per-child", metavar="N", help="Replace a child after so many jobs.")
@click.option("--max-child-age", metavar="TIME", help="Replace a child of that age, between two jobs.")
@click.option("--queue", multiple=True, metavar="NAME[=WEIGHT]", help="Work on this queue only; repeatable.")
@click.option(
    "--drain", is_flag=False, flag_value="all", metavar="[due]", help="Exit when no job is left, or none due."
)
@click.option("--lease", metavar="TIME", help="How long a silent supervisor keeps its jobs.  [60s]")
@click.option("--grace", metavar="TIME", help="How long running jobs may go on after SIGTERM.  [30s]")
@click.option("--poll", metavar="TIME", help="The longest wait before looking for jobs.  [1s]")
@click.option("--http", metavar="HOST:PORT", help="Serve /healthz, /readyz and /metrics there.")
@click.option("--keep-completed", metavar="TIME", help="How long completed jobs are kept, or `forever`.  [7d]")
@click.option("--keep-failed", metavar="TIME", help="How long failed and canceled jobs are kept.  [30d]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [info]")
@click.option("--log-format", metavar="FORMAT", help="text or json.  [text]")
@click.option("--migrate/--no-migrate", default=None, help="Bring the schema up to date first; else refuse.  [migrate]")
@click.option("--notify/--no-notify", default=None, help="Listen for and send notifications; else only poll.  [notify]")
@click.option("--preload", multiple=True, metavar="MODULE", help="Import this too once for all children; repeatable.")
@click.option("--no-preload", is_flag=True, help="Import the application in each child, not once for all.")
@click.option("--slot-env", multiple=True, metavar="NAME=V,V", help="A variable's value for each slot; repeatable.")
@click.option("--reload", is_flag=True, default=None, help="For development: fresh children when the code changes.")
@database_options
def run(dsn: str | None, config_file: Path | None, **options: Any) -> int:
    """Run jobs until stopped: one supervisor with a child process for each slot.

    The first SIGTERM or Ctrl-C lets running jobs finish for --grace, a second one stops them, a third leaves at once.
    Every option can stand in the environment (TASUKI_PROCS), in the file given by --config, or in [tool.tasuki-mp]
    of pyproject.toml.
    """
    for name in ("queue", "preload", "slot_env"):
        options[name] = list(options[name]) or None
    if options.pop("no_preload"):
        if options["preload"]:
            raise click.UsageError("--preload and --no-preload exclude each other")
        options["preload"] = False
    config = run_config(options_by_name(options), dsn="", config_file=config_file)
    with errors_as_events(config), open_database(dsn, config_file) as database:
        if config.log_format == "json":
            logs.event(logging.INFO, "tasuki-mp", version=__version__, database=database.description)
        else:
            click.echo(f"tasuki-mp {__version__}, database {database.description}", err=True)
        prepare(database, config)
        from tasuki_mp.supervisor.supervisor import run as supervise

        return supervise(msgspec.structs.replace(config, dsn=database.dsn))


def options_by_name(options: dict[str, Any]) -> dict[str, Any]:
    """click's parameter names as the options are called on the command line."""
    return {name.replace("_", "-"): value for name, value in options.items()}


def prepare(database: Database, config: RunConfig) -> None:
    """Bring the schema up to date, or refuse if that is not wanted. Raises DatabaseError."""
    with connected(database, name="migrate") as conn:
        if not config.migrate:
            migrations.check(conn)
            return
        for migration in migrations.migrate(conn):
            if config.log_format == "json":
                logs.event(logging.INFO, "migration applied", file=migration.file_name)
            else:
                click.echo(f"applied {migration.file_name}", err=True)


@contextmanager
def errors_as_events(config: RunConfig) -> Iterator[None]:
    """Where each line of the log is JSON, that holds from the first to the last one, also for what ends the program."""
    if config.log_format != "json":
        yield
        return
    writer = logs.set_up(level=config.log_level, log_format=config.log_format)
    try:
        yield
    except (TasukiError, psycopg.Error) as raised:
        error = explain(raised) if isinstance(raised, psycopg.Error) else raised
        writer = logs.set_up(level=config.log_level, log_format=config.log_format)  # the supervisor's own has ended
        logs.event(logging.CRITICAL, "ended by an error", type=type(error).__name__, error=str(error))
        raise click.exceptions.Exit(exit_code(error)) from error
    finally:
        writer.stop()
