"""A schedule as data, and the decision which of its ticks fire. Pure: no I/O, no clock.

It travels in a child's hello and stands in the database, so that whoever fires a tick need not have the application.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from tasuki_mp import timetable
from tasuki_mp.errors import ScheduleError
from tasuki_mp.job import JobRow
from tasuki_mp.options import parse_duration

Misfire = Literal["skip", "last"]
Overlap = Literal["allow", "skip"]
Duration = timedelta | float | str
"""A timedelta, a number of seconds, or text such as `90s`."""

MISFIRE_AFTER: Final = 60.0
MOST_COUNTED: Final = 1000
"""Ticks that were missed together are counted up to here."""
MOST_AT_ONCE: Final = 500
"""Ticks of one schedule that are decided together at most."""
LONGEST_NAME: Final = 200

_SECOND: Final = timedelta(seconds=1)
_YEAR: Final = 366 * 86_400.0


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """When a schedule ticks, and what is too late."""

    timetable: str
    tz: str = "UTC"
    misfire: Misfire = "last"
    misfire_after: float = MISFIRE_AFTER
    """Seconds; a tick that is later than that is a misfire."""
    starts_at: datetime | None = None
    ends_at: datetime | None = None

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """The ticks later than that instant, ascending. Raises ScheduleError if this machine lacks the time zone."""
        if self.starts_at is not None and after < self.starts_at:
            after = self.starts_at - timedelta(microseconds=1)  # a tick on the start counts
        found = timetable.parse(self.timetable, self.tz, anchor=self.starts_at).ticks(after)
        ends_at = self.ends_at
        return found if ends_at is None else itertools.takewhile(lambda tick: tick <= ends_at, found)


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule: when it ticks, and which job a tick inserts."""

    name: str
    times: Times
    job: JobRow
    jitter: float = 0.0
    """Seconds; a tick's job is due at a random time so long after it."""
    overlap: Overlap = "allow"
    tick_argument: str | None = None
    """The key of the payload that gets the tick's time, if the handler asked for it."""


class Decided(msgspec.Struct, frozen=True):
    """What becomes of a schedule's due ticks. Those up to `until` need not be looked at again."""

    fired: list[datetime]
    missed: datetime | None
    """The last tick that came too late and does not fire."""
    passed_over: int
    """How many ticks before the first of these came too late and do not fire, counted to `MOST_COUNTED`."""
    until: datetime


def info(
    name: str,
    when: str | timedelta,
    job: JobRow,
    *,
    tz: str = "UTC",
    misfire: Misfire = "last",
    misfire_after: Duration = MISFIRE_AFTER,
    jitter: Duration = 0.0,
    overlap: Overlap = "allow",
    start: datetime | None = None,
    end: datetime | None = None,
    tick_argument: str | None = None,
) -> ScheduleInfo:
    """The schedule, checked. Raises ScheduleError, with the reason."""
    what = f"schedule {name!r}"
    given: Any = name
    if not (isinstance(given, str) and 1 <= len(given) <= LONGEST_NAME and given.isprintable() and " " not in given):
        raise ScheduleError(f"{what}: a name has 1 to {LONGEST_NAME} printable characters and no space")
    if misfire not in ("skip", "last"):
        raise ScheduleError(f"{what}: misfire is 'skip' or 'last', not {misfire!r}")
    if overlap not in ("allow", "skip"):
        raise ScheduleError(f"{what}: overlap is 'allow' or 'skip', not {overlap!r}")
    instants: tuple[tuple[str, Any], ...] = (("start", start), ("end", end))
    for word, instant in instants:
        if instant is not None and (not isinstance(instant, datetime) or instant.tzinfo is None):
            raise ScheduleError(f"{what}: {word} is a datetime with a time zone, not {instant!r}")
    if start is not None and end is not None and end < start:
        raise ScheduleError(f"{what}: it ends before it starts")
    try:
        found = timetable.parse(when, tz, anchor=start)
    except ScheduleError as error:
        raise ScheduleError(f"{what}: {error}") from error
    if job.scheduled_at is not None or job.delay:
        raise ScheduleError(f"{what}: its job has a due time of its own; leave out after() and at()")
    if job.unique is not None:
        raise ScheduleError(f"{what}: its job can't be unique; overlap='skip' keeps a tick from firing beside another")
    if not job.is_plain:
        raise ScheduleError(
            f"{what}: its job can't wait for others or be followed; schedule a function that yields them"
        )
    return ScheduleInfo(
        name=name,
        times=Times(
            timetable=found.text,
            tz=tz,
            misfire=misfire,
            misfire_after=_seconds(what, "misfire_after", misfire_after),
            starts_at=start and start.astimezone(UTC),
            ends_at=end and end.astimezone(UTC),
        ),
        job=job,
        jitter=_seconds(what, "jitter", jitter),
        overlap=overlap,
        tick_argument=tick_argument,
    )


def decide(times: Times, *, after: datetime, now: datetime) -> Decided | None:
    """Which of the ticks later than `after` fire now; None if none is due.

    A tick fires unless it is more than `misfire_after` late; of those that are, the last one fires with `misfire="last"`
    and none with `"skip"`.
    """
    # A tick that is late by exactly that much still fires.
    late = now - timedelta(seconds=times.misfire_after)
    fired: list[datetime] = []
    missed: datetime | None = None
    passed_over = 0
    ticks = times.ticks(after)
    first = next(ticks, None)
    if first is None or first > now:
        return None
    if first < late:
        last, count = _last(times, after, late - timedelta(microseconds=1))
        passed_over = count - 1
        if times.misfire == "last":
            fired.append(last)
        else:
            missed = last
        ticks = times.ticks(last)
    else:
        fired.append(first)
    fired += itertools.islice(itertools.takewhile(lambda tick: tick <= now, ticks), MOST_AT_ONCE)
    return Decided(fired, missed, passed_over, max(fired[-1:] + ([missed] if missed else [])))


def _last(times: Times, after: datetime, until: datetime) -> tuple[datetime, int]:
    """The last tick in (after, until], of which there is one, and how many there are, counted to `MOST_COUNTED`."""
    last, count = after, 0
    for tick in itertools.takewhile(lambda tick: tick <= until, times.ticks(after)):
        last, count = tick, count + 1
        if count == MOST_COUNTED:
            break
    else:
        return last, count
    # Too many to go through: halve the time that is left, as ticks are a second apart at least.
    high = until
    while high - last >= _SECOND:
        middle = last + (high - last) / 2
        tick = next(times.ticks(middle), until + _SECOND)
        if tick <= until:
            last = tick
        else:
            high = middle
    return last, count


def _seconds(what: str, option: str, given: Duration) -> float:
    try:
        seconds = given.total_seconds() if isinstance(given, timedelta) else parse_duration(given)
    except ValueError as error:
        raise ScheduleError(f"{what}: {option}: {error}") from error
    if not (math.isfinite(seconds) and 0 <= seconds <= _YEAR):
        raise ScheduleError(f"{what}: {option} lies between 0 seconds and a year, not {given!r}")
    return seconds
