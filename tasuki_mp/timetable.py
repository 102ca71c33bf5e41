"""When a schedule is due: cron expressions and intervals as a set of instants, the same for whoever asks, and whenever.

Cron expressions are parsed and walked by cronsim, on the wall clock of their time zone; what a change of that clock means
is decided here (see docs/schedules.md). An expression whose fields for second, minute and hour all name times (none begins
with a star) has *fixed times*: one that the clock leaps over ticks once, at the first instant after the gap, and one that
comes twice ticks the first time only. Any other expression goes by elapsed time: it ticks whenever the clock on the wall
shows what it says. cronsim's own rule is the same, but its ticks may depend on where the walk began.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from tasuki_mp.errors import ScheduleError
from tasuki_mp.options import parse_duration

MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
LONGEST_INTERVAL: Final = 366 * 86_400.0

_INTERVAL: Final = re.compile(r"@?every\s+(?P<duration>.+)", re.IGNORECASE)
_SECOND: Final = timedelta(seconds=1)
_PROBE: Final = timedelta(days=1)
"""How far apart a zone's offset is looked at: no zone changes it and back within a day."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2190, 1, 1, tzinfo=UTC)


class Timetable(Protocol):
    """A set of instants. `text` is its canonical spelling, which `parse` takes again."""

    text: str

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """The ticks later than that instant, ascending, in UTC."""


@functools.lru_cache(maxsize=1024)
def parse(text: str | timedelta, tz: str = "UTC", *, anchor: datetime | None = None) -> Timetable:
    """The timetable that a cron expression of five or six fields, a word like `@daily`, or an interval describes.

    Intervals (`every 90s`, or a timedelta) are counted from `anchor`, else from 1970-01-01 00:00 UTC, so that every host
    arrives at the same ticks. Raises ScheduleError with what to write instead.
    """
    zone = time_zone(tz)
    if isinstance(text, timedelta):
        return Interval(text.total_seconds(), anchor)
    if not isinstance(text, str):
        raise ScheduleError(f"{text!r} is no timetable; write a cron expression, 'every 90s', or a timedelta")
    words = " ".join(text.split())
    if match := _INTERVAL.fullmatch(words):
        try:
            return Interval(parse_duration(match["duration"]), anchor)
        except ValueError as error:
            raise ScheduleError(f"{words!r}: {error}") from error
    return Cron(words, zone)


@functools.cache
def time_zone(name: str) -> tzinfo:
    """The time zone of that name. Raises ScheduleError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, TypeError) as error:  # ZoneInfoNotFoundError is a KeyError, and comes below
        raise ScheduleError(f"{name!r} is no time zone; write a name like Europe/Paris") from error
    except KeyError as error:
        raise ScheduleError(
            f"this machine knows no time zone {name!r}; write a name like Europe/Paris (if that is one, install tzdata)"
        ) from error


class Interval:
    """A tick every so many seconds from an anchor, which ticks too."""

    def __init__(self, seconds: float, anchor: datetime | None = None) -> None:
        if not 1 <= seconds <= LONGEST_INTERVAL:
            raise ScheduleError(f"an interval lies between one second and a year, not {seconds:g} seconds")
        self._step = timedelta(seconds=seconds)
        self._anchor = (anchor or _EPOCH).astimezone(UTC)
        self.text = f"every {seconds:.6f}".rstrip("0").rstrip(".") + "s"

    def ticks(self, after: datetime) -> Iterator[datetime]:
        number = (after - self._anchor) // self._step + 1
        tick = self._anchor + max(0, number) * self._step
        while tick < _LAST:
            yield tick
            tick += self._step


class Cron:
    """A cron expression on the wall clock of a time zone."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self.text = expression
        self._zone = zone
        fields = MACROS.get(expression.lower(), expression)
        if fields.startswith("@"):
            raise ScheduleError(f"{expression!r} is none of {', '.join(MACROS)}, nor '@every 90s'")
        self._fields = fields
        try:
            sim = CronSim(fields, datetime(2000, 1, 1))  # noqa: DTZ001  the time on a wall has no zone
        except CronSimError as error:
            raise ScheduleError(
                f"{expression!r} is no cron expression ({str(error)[:1].lower()}{str(error)[1:]}); five fields are minute, "
                "hour, day of the month, month, day of the week, and six begin with the second"
            ) from error
        if next(sim, None) is None:
            raise ScheduleError(f"{expression!r}: there is no such date")
        times = fields.split()[:-3]
        self._is_fixed = not any(field.startswith("*") for field in times)

    def ticks(self, after: datetime) -> Iterator[datetime]:
        after = after.astimezone(UTC)
        return self._at_fixed_times(after) if self._is_fixed else self._by_elapsed_time(after)

    def _walk(self, wall: datetime) -> Iterator[datetime]:
        """What the expression says on the wall clock from there on, not before."""
        # cronsim gives what is later than where it begins, to the second.
        begin = wall.replace(microsecond=0)
        return iter(CronSim(self._fields, begin if begin < wall else begin - _SECOND))

    def _at_fixed_times(self, after: datetime) -> Iterator[datetime]:
        last = after
        for wall in self._walk(_wall(after, self._zone)):
            tick = _first_instant(wall, self._zone)
            if tick >= _LAST:
                return
            if tick > last:  # several that the clock leaps over are one; those that come again are behind us
                yield tick
                last = tick

    def _by_elapsed_time(self, after: datetime) -> Iterator[datetime]:
        begin: datetime | None = after.replace(microsecond=0) + _SECOND
        while begin is not None:
            begin = yield from self._until_change(begin)

    def _until_change(self, begin: datetime) -> Generator[datetime, None, datetime | None]:
        """The ticks from there on while the zone keeps its offset; returns when it changed, None if there are no more."""
        offset = _offset(begin, self._zone)
        looked_at = begin
        for wall in self._walk(begin.replace(tzinfo=None) + offset):
            tick = (wall - offset).replace(tzinfo=UTC)
            if tick >= _LAST:
                return None
            while looked_at < tick:
                later = min(looked_at + _PROBE, tick)
                if _offset(later, self._zone) != offset:
                    return _change_between(looked_at, later, self._zone)
                looked_at = later
            yield tick
        return None


def _wall(instant: datetime, zone: tzinfo) -> datetime:
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(instant: datetime, zone: tzinfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta()


def _first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """When the clock first shows that time, or one that is later."""
    aware = wall.replace(tzinfo=zone)
    instant = aware.astimezone(UTC)
    if _wall(instant, zone) == wall:
        return instant
    # In a gap: the offset after it makes an instant before it, and the other way round.
    before = aware.replace(fold=1).astimezone(UTC)
    return _change_between(before, instant, zone)


def _change_between(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """The instant in (low, high] from which the offset is no longer that of `low`, to the second."""
    offset = _offset(low, zone)
    seconds, most = 0, int((high - low).total_seconds())
    while most - seconds > 1:
        middle = (seconds + most) // 2
        if _offset(low + middle * _SECOND, zone) == offset:
            seconds = middle
        else:
            most = middle
    return low + most * _SECOND
