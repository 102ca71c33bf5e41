"""`tasuki-mp retry`, `delete`, `move` and `reschedule`, and what they share with `cancel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import (
    filter_options,
    ids_argument,
    instant,
    is_interactive,
    job_filter,
    jobs_of,
    queue_name,
    selection,
)
from tasuki_mp.config import ExitCode
from tasuki_mp.errors import ConfigError
from tasuki_mp.options import parse_duration
from tasuki_mp.store import change
from tasuki_mp.store.change import Action, Changed
from tasuki_mp.store.look import Connection
from tasuki_mp.store.select import JobFilter
from tasuki_mp.store.steps import drive

F = TypeVar("F", bound=Callable[..., Any])

_REASONS: Final = {
    "running": "running, and left alone: cancel first",
    "finished": "finished already",
    "live": "not finished yet",
    "locked": "locked by somebody else all the while: try again",
    "changed": "no longer in a state and queue that was meant",
    "there": "in that queue already",
    "retried before": "retried before (--again makes another copy)",
    "key taken": "another job stands for the unique key",
    "unknown": "unknown: never there, or deleted",
}
_WHAT: Final = {
    "canceled": "canceled",
    "requested": "runs; it is asked to end, and killed after its grace",
    "retried": "retried",
    "deleted": "deleted",
    "moved": "moved",
    "rescheduled": "rescheduled",
}
_DONE: Final = {
    "cancel": "canceled",
    "retry": "retried",
    "delete": "deleted",
    "move": "moved",
    "reschedule": "rescheduled",
}


def change_options(command: F) -> F:
    """Ids, filters and what every command has that changes jobs."""
    for option in (
        database_options,
        click.option("--json", "is_json", is_flag=True, help="One JSON object: what was done, and what was left out."),
        click.option("--yes", "-y", "is_sure", is_flag=True, help="Don't ask."),
        click.option("--dry-run", "is_dry", is_flag=True, help="Only say what would be done."),
        filter_options,
        ids_argument,
    ):
        command = option(command)
    return command


@click.command(short_help="Run finished jobs again.")
@change_options
@click.option("--again", "is_again", is_flag=True, help="Also those that were retried before.")
def retry(is_again: bool, **options: Any) -> int:
    """Enqueue copies of finished jobs: of those that failed, unless ids or --state name others.

    The finished job stays as it is; the copy has all its attempts before it, and says what it is a copy of.
    """
    return run(change.RETRY, options, {"again": is_again})


@click.command(short_help="Delete jobs.")
@change_options
def delete(**options: Any) -> int:
    """Delete pending and finished jobs, with all that is known about them. Running ones stay."""
    return run(change.DELETE, options)


@click.command(short_help="Put pending jobs into another queue.")
@change_options
@click.option("--to", required=True, metavar="QUEUE", help="The queue to put them into.")
def move(to: str, **options: Any) -> int:
    """Put pending jobs into another queue. Note that --queue says which jobs are meant, and --to where they go."""
    return run(change.MOVE, options, {"to": queue_name(to, "--to")})


@click.command(short_help="Let pending jobs be due at another time.")
@change_options
@click.option("--at", "at_text", metavar="WHEN", help="Due then, like 2027-01-01T00:00+09:00.")
@click.option("--after", metavar="TIME", help="Due that long from now, like 2h; 0 is now.")
def reschedule(at_text: str | None, after: str | None, **options: Any) -> int:
    """Let pending jobs be due at another time."""
    if (at_text is None) == (after is None):
        raise ConfigError("when? Give --at or --after, and only one of them")
    delay = None
    if after is not None:
        try:
            delay = parse_duration(after)
        except ValueError as error:
            raise ConfigError(f"--after: {error}") from None
    at = None if at_text is None else instant(at_text, "--at")
    return run(change.RESCHEDULE, options, change.reschedule_parameters(at, delay))


def run(action: Action, options: dict[str, Any], parameters: Mapping[str, Any] | None = None) -> int:
    """Do it, after asking where somebody can be asked; the exit code is 1 if a job that was named is unknown."""
    dsn, config_file = options.pop("dsn"), options.pop("config_file")
    ids, is_json = options.pop("ids"), options.pop("is_json")
    is_dry, is_sure = options.pop("is_dry"), options.pop("is_sure")
    which = selection(ids, job_filter(**options))
    if isinstance(which, JobFilter):
        try:
            change.meant(action, which)
        except ValueError as error:
            raise ConfigError(f"--state: {error}") from None
    return run_on(action, which, dsn, config_file, parameters, is_json=is_json, is_dry=is_dry, is_sure=is_sure)


def run_on(
    action: Action,
    which: JobFilter | Iterable[int],
    dsn: str | None,
    config_file: Path | None,
    parameters: Mapping[str, Any] | None = None,
    *,
    is_json: bool,
    is_dry: bool,
    is_sure: bool,
) -> int:
    """The same, with everything in its place."""
    with open_connection(dsn, config_file, name=action.verb) as (database, conn):
        say_which(database)
        if is_dry:
            changed = drive(conn, change.count(action, which, parameters))
        elif not is_sure and not _is_wanted(action, which, parameters, conn):
            click.echo("nothing was done", err=True)
            return ExitCode.OK
        else:
            changed = drive(conn, change.change(action, which, parameters))
    _report(action, changed, is_json=is_json, is_dry=is_dry)
    return ExitCode.FAILED if "unknown" in changed.skipped else ExitCode.OK


def _is_wanted(
    action: Action, which: JobFilter | Iterable[int], parameters: Mapping[str, Any] | None, conn: Connection
) -> bool:
    """Ask whoever can be asked: a filter may match more than was thought, and what is deleted is gone."""
    if not isinstance(which, JobFilter) and action is not change.DELETE:
        return True
    if not is_interactive():
        return True
    number = drive(conn, change.count(action, which, parameters)).done
    return number == 0 or click.confirm(f"{action.verb} {jobs_of(number)}?", err=True)


def _report(action: Action, changed: Changed, *, is_json: bool, is_dry: bool) -> None:
    if is_json:
        known = {"verdicts": changed.verdicts} if changed.verdicts else {}
        copies = {"copies": changed.copies} if changed.copies else {}
        click.echo(
            text.json_line({"done": changed.done, "skipped": changed.skipped, "is_dry_run": is_dry, **known, **copies})
        )
        return
    width = max((len(str(job_id)) for job_id in changed.verdicts), default=0)
    for job_id, verdict in changed.verdicts.items():
        words = _WHAT.get(verdict) or _REASONS[verdict]
        if job_id in changed.copies:
            words = f"{words.partition(' (')[0]} as {changed.copies[job_id]}"
        click.echo(f"{job_id:>{width}}  {'would be ' if is_dry and verdict in _WHAT else ''}{words}")
    if not changed.verdicts or is_dry:
        click.echo(f"{'would be ' if is_dry else ''}{_DONE[action.verb]}: {jobs_of(changed.done)}")
    if not changed.verdicts:
        for reason, number in changed.skipped.items():
            click.echo(f"skipped: {jobs_of(number)}, {_REASONS[reason]}", err=True)
