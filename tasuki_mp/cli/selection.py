"""Which jobs a command means: ids, or the filters that all such commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from tasuki_mp.backoff import MAX_DELAY
from tasuki_mp.cli import text
from tasuki_mp.errors import ConfigError
from tasuki_mp.job import NAME_PATTERN, State
from tasuki_mp.options import parse_duration
from tasuki_mp.store.select import JobFilter

F = TypeVar("F", bound=Callable[..., Any])

STATES: Final = tuple(state.value for state in State)


class _Id(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """The id of a job or batch."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[0-9]{1,19}", value) or not 1 <= int(value) < 2**63:
            self.fail(f"{value!r} is no id, which is a whole number", param, ctx)
        return int(value)


ID: Final = _Id()

ids_argument: Final = click.argument("ids", metavar="[ID]...", nargs=-1, type=ID)


def filter_options(command: F) -> F:
    """The options that make a JobFilter; their values come in as keywords, for `job_filter`."""
    for option in (
        click.option("--error", metavar="TEXT", help="Whose last error has this in its type or message."),
        click.option(
            "--since", metavar="WHEN", help="Finished (or else enqueued) since then: 2h, or a time with zone."
        ),
        click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="In this state; repeatable."),
        click.option("--key", metavar="KEY", help="With this key, or unique key."),
        click.option("--batch", metavar="ID|NAME", help="Of this batch, or the newest of that name."),
        click.option("--handler", metavar="NAME", help="Of this handler."),
        click.option("--queue", metavar="NAME", help="In this queue."),
    ):
        command = option(command)
    return command


def job_filter(
    *,
    queue: str | None,
    handler: str | None,
    key: str | None,
    batch: str | None,
    states: tuple[str, ...],
    since: str | None,
    error: str | None,
) -> JobFilter:
    """The filter that the options make. Raises ConfigError."""
    for name, value in (
        ("--queue", queue),
        ("--handler", handler),
        ("--key", key),
        ("--batch", batch),
        ("--error", error),
    ):
        require_text(value, name)
    return JobFilter(
        queue=queue_name(queue, "--queue"),
        handler=handler,
        key=key,
        batch=int(batch) if batch is not None and re.fullmatch(r"[0-9]{1,18}", batch) else batch,
        states=frozenset(State(state) for state in states),
        since=None if since is None else moment(since, "--since"),
        error=error,
    )


def selection(ids: tuple[int, ...], which: JobFilter) -> JobFilter | list[int]:
    """The ids, or else the filter. Raises ConfigError if there are both, or neither."""
    if ids and not which.is_empty:
        raise ConfigError("name jobs by their ids or by filters, not by both")
    if ids:
        return list(ids)
    if which.is_empty:
        raise ConfigError(
            "which jobs? Give their ids, or filters such as --queue, --handler, --key, --batch, --state, --since"
        )
    return which


def moment(given: str, option: str) -> datetime:
    """An instant: so long ago, or a time with its zone. Raises ConfigError."""
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(given))
    except ValueError:
        return instant(given, option, also=", or a while ago like 2h")
    except OverflowError:
        raise ConfigError(f"{option}: {given!r} is longer ago than the calendar goes") from None


def instant(given: str, option: str, *, also: str = "") -> datetime:
    """A time with its zone, within a hundred years. Raises ConfigError."""
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigError(f"{option}: {given!r} is no time; write it like 2027-01-01T00:00+09:00{also}") from None
    if at.tzinfo is None:
        written = given if _is_time(f"{given}Z") else at.isoformat(timespec="minutes")  # a date alone takes no zone
        raise ConfigError(f"{option}: {given!r} has no time zone; write it like {written}+09:00 or {written}Z")
    if abs((at - datetime.now(UTC)).total_seconds()) > MAX_DELAY:
        raise ConfigError(f"{option}: {given!r} is more than a hundred years away")
    return at


def _is_time(given: str) -> bool:
    try:
        datetime.fromisoformat(given)
    except ValueError:
        return False
    return True


def queue_name(name: str | None, option: str) -> str | None:
    """The same name, if a queue can have it. Raises ConfigError."""
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{option}: {name!r} is no queue name: 1 to 57 letters, digits, '_', '.', ':' or '-'")
    return name


def require_text(given: str | None, what: str) -> None:
    """Raises ConfigError for what the shell passed on and Postgres could not take."""
    try:
        encoded = (given or "").encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is not valid UTF-8") from None
    if b"\0" in encoded:
        raise ConfigError(f"{what} contains a NUL character")


def is_interactive() -> bool:
    """Whether there is a person who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def jobs_of(number: int) -> str:
    """`1 job`, `1,234 jobs`."""
    return f"{text.number(number)} {'job' if number == 1 else 'jobs'}"
