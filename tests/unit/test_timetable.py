"""When schedules tick: expressions, intervals, and both edges of daylight-saving time in several zones and years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given
from hypothesis import strategies as st

from tasuki_mp.errors import ScheduleError
from tasuki_mp.timetable import parse


def ticks(text: str, tz: str, after: str, count: int) -> list[str]:
    """The wall clock of that zone at the next ticks; `after` too is a time on it."""
    zone = ZoneInfo(tz)
    found = islice(parse(text, tz).ticks(datetime.fromisoformat(after).replace(tzinfo=zone)), count)
    return [tick.astimezone(zone).isoformat(timespec="seconds") for tick in found]


def days(text: str, after: str, count: int) -> list[str]:
    return [tick[:10] for tick in ticks(text, "UTC", after, count)]


# ── expressions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 6 * * *", ["2026-01-01T06:30:00+00:00", "2026-01-02T06:30:00+00:00"]),
        ("*/20 * * * *", ["2026-01-01T00:20:00+00:00", "2026-01-01T00:40:00+00:00"]),
        ("15,45 8-9 * * mon-fri", ["2026-01-01T08:15:00+00:00", "2026-01-01T08:45:00+00:00"]),
        ("0 0 1 jan,JUL *", ["2026-07-01T00:00:00+00:00", "2027-01-01T00:00:00+00:00"]),
        ("*/30 * * * * *", ["2026-01-01T00:00:30+00:00", "2026-01-01T00:01:00+00:00"]),
        ("5 0 12 * * *", ["2026-01-01T12:00:05+00:00", "2026-01-02T12:00:05+00:00"]),
        ("@daily", ["2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"]),
        ("@hourly", ["2026-01-01T01:00:00+00:00", "2026-01-01T02:00:00+00:00"]),
        ("@yearly", ["2027-01-01T00:00:00+00:00", "2028-01-01T00:00:00+00:00"]),
        ("every 90s", ["2026-01-01T00:01:30+00:00", "2026-01-01T00:03:00+00:00"]),
        ("@every 1h30m", ["2026-01-01T01:30:00+00:00", "2026-01-01T03:00:00+00:00"]),
    ],
)
def test_an_expression_ticks_when_it_says(text: str, expected: list[str]) -> None:
    assert ticks(text, "UTC", "2026-01-01T00:00", 2) == expected


def test_the_last_day_of_a_month_and_the_nth_weekday() -> None:
    assert days("0 0 L * *", "2028-01-15", 3) == ["2028-01-31", "2028-02-29", "2028-03-31"]
    assert days("0 9 * * fri#2", "2026-01-01", 3) == ["2026-01-09", "2026-02-13", "2026-03-13"]
    assert days("0 9 * * 5L", "2026-01-01", 3) == ["2026-01-30", "2026-02-27", "2026-03-27"]
    assert days("0 9 LW * *", "2026-01-01", 3) == ["2026-01-30", "2026-02-27", "2026-03-31"]


def test_day_of_the_month_and_day_of_the_week_are_alternatives_unless_one_is_a_star() -> None:
    assert days("0 0 13 * fri", "2026-02-01", 3) == ["2026-02-06", "2026-02-13", "2026-02-20"]
    assert days("0 0 13 * *", "2026-02-01", 2) == ["2026-02-13", "2026-03-13"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("61 * * * *", "bad minute"),
        ("* * *", "wrong number of fields"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("0 0 * * 0#6", "bad day-of-week"),
        ("@reboot", "is none of @yearly"),
        ("every day", "no duration"),
        ("every 0s", "between one second and a year"),
        ("", "wrong number of fields"),
    ],
)
def test_what_is_no_timetable_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        parse(text)


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "europe"])
def test_what_is_no_time_zone_is_refused(tz: str) -> None:
    with pytest.raises(ScheduleError, match="time zone"):
        parse("@daily", tz)


def test_an_interval_is_counted_from_its_anchor_by_every_host_alike() -> None:
    anchor = datetime(2026, 1, 1, 0, 0, 7, tzinfo=UTC)
    table = parse(timedelta(minutes=1), anchor=anchor)
    assert list(islice(table.ticks(anchor - timedelta(days=9)), 2)) == [anchor, anchor + timedelta(minutes=1)]
    assert next(table.ticks(anchor)) == anchor + timedelta(minutes=1)
    assert parse(table.text, anchor=anchor).text == table.text == "every 60s"


# ── daylight-saving time ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tz", "before", "text", "expected"),
    [
        # The clock leaps over the time: once, at the first instant that there is.
        ("Europe/Paris", "2024-03-30T12:00", "30 2 * * *", ["2024-03-31T03:00:00+02:00", "2024-04-01T02:30:00+02:00"]),
        ("Europe/Paris", "2027-03-27T12:00", "30 2 * * *", ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]),
        ("America/New_York", "2026-03-07T12:00", "15 2 * * *", ["2026-03-08T03:00:00-04:00"]),
        ("Australia/Lord_Howe", "2026-10-03T12:00", "15 2 * * *", ["2026-10-04T02:30:00+11:00"]),
        ("Africa/Cairo", "2026-04-23T12:00", "0 0 * * *", ["2026-04-24T01:00:00+03:00", "2026-04-25T00:00:00+03:00"]),
        ("America/Sao_Paulo", "2018-11-03T12:00", "30 0 4 11 *", ["2018-11-04T01:00:00-02:00"]),
        ("Europe/Paris", "2026-03-28T12:00", "0 30 2 * * *", ["2026-03-29T03:00:00+02:00"]),
        # Several that it leaps over are one, and so is one that stands where the gap ends.
        (
            "Europe/Paris",
            "2026-03-28T12:00",
            "0,20,40 2-3 * * *",
            ["2026-03-29T03:00:00+02:00", "2026-03-29T03:20:00+02:00", "2026-03-29T03:40:00+02:00"],
        ),
        # The time comes twice: the first one counts.
        ("Europe/Paris", "2024-10-26T12:00", "30 2 * * *", ["2024-10-27T02:30:00+02:00", "2024-10-28T02:30:00+01:00"]),
        ("America/New_York", "2026-10-31T12:00", "30 1 * * *", ["2026-11-01T01:30:00-04:00"]),
        ("Australia/Lord_Howe", "2026-04-04T12:00", "45 1 * * *", ["2026-04-05T01:45:00+11:00"]),
        # Stars and steps go by elapsed time: nothing in the gap, both hours where there are two.
        (
            "Europe/Paris",
            "2026-03-29T01:15",
            "*/30 * * * *",
            ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
        ),
        (
            "Europe/Paris",
            "2026-10-25T01:30",
            "*/30 * * * *",
            [
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:00:00+01:00",
            ],
        ),
        ("America/New_York", "2026-03-08T00:30", "0 * * * *", ["2026-03-08T01:00:00-05:00", "2026-03-08T03:00:00-04:00"]),
        # On that day of that month only, where the day itself begins with a gap.
        ("Africa/Cairo", "2026-04-20T12:00", "*/30 1-5 24 4 *", ["2026-04-24T01:00:00+03:00", "2026-04-24T01:30:00+03:00"]),
        # Only in the hour that comes twice.
        (
            "Europe/Paris",
            "2026-01-01T12:00",
            "*/30 2 25 10 *",
            [
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T02:30:00+01:00",
                "2027-10-25T02:00:00+02:00",
            ],
        ),
    ],
)  # fmt: skip
def test_a_change_of_the_clock(tz: str, before: str, text: str, expected: list[str]) -> None:
    assert ticks(text, tz, before, len(expected)) == expected


def test_an_interval_knows_no_daylight_saving_time() -> None:
    found = ticks("every 1h", "Europe/Paris", "2026-10-25T01:30", 4)
    assert [tick[11:] for tick in found] == ["02:00:00+02:00", "02:00:00+01:00", "03:00:00+01:00", "04:00:00+01:00"]


EDGES = {
    "Europe/Paris": ["2025-03-30T01:00", "2026-03-29T01:00", "2025-10-26T01:00", "2026-10-25T01:00"],
    "America/New_York": ["2025-03-09T07:00", "2026-03-08T07:00", "2025-11-02T06:00", "2026-11-01T06:00"],
    "Australia/Lord_Howe": ["2025-10-04T15:30", "2026-10-03T15:30", "2026-04-04T15:00", "2027-04-03T15:00"],
    "Africa/Cairo": ["2025-04-24T22:00", "2026-04-23T22:00", "2025-10-30T21:00", "2026-10-29T21:00"],
    "UTC": ["2026-02-28T23:00"],
}
"""When these zones change their clocks, in UTC."""

expressions = st.tuples(
    st.sampled_from(["0", "30", "15,45", "*/20", "*", "59"]),
    st.sampled_from(["0", "1", "2", "0-3", "1,2,3", "*", "*/2"]),
    st.sampled_from(["*", "*", "25-31", "1-8", "*/2"]),
    st.just("*"),
    st.sampled_from(["*", "*", "sun", "fri,sun"]),
).map(" ".join)
near_edges = st.sampled_from([(tz, edge) for tz, edges in EDGES.items() for edge in edges])


@given(text=expressions, where=near_edges, hours=st.integers(-30 * 3600, 30 * 3600))
@example(text="30 2 * * *", where=("Europe/Paris", "2026-10-25T01:00"), hours=600)
def test_the_ticks_are_the_same_from_wherever_one_looks(text: str, where: tuple[str, str], hours: int) -> None:
    tz, edge = where
    near = datetime.fromisoformat(edge).replace(tzinfo=UTC)
    begin, end = near - timedelta(hours=40), near + timedelta(hours=40)
    after = near + timedelta(seconds=hours)
    table = parse(text, tz)
    whole = list(takewhile(lambda tick: tick <= end, table.ticks(begin)))
    assert whole == sorted(set(whole))
    assert list(takewhile(lambda tick: tick <= end, table.ticks(after))) == [tick for tick in whole if tick > after]


@given(text=expressions, where=near_edges)
def test_the_ticks_are_those_of_cronsim(text: str, where: tuple[str, str]) -> None:
    tz, edge = where
    if tz in {"Africa/Cairo", "Australia/Lord_Howe"}:
        return  # cronsim loses a tick where a day begins with a gap, or the clock changes by half an hour
    near = datetime.fromisoformat(edge).replace(tzinfo=UTC)
    begin, end = near - timedelta(hours=40), near + timedelta(hours=40)
    theirs = (tick.astimezone(UTC) for tick in CronSim(text, begin.astimezone(ZoneInfo(tz) if tz != "UTC" else UTC)))
    ours = takewhile(lambda tick: tick <= end, parse(text, tz).ticks(begin))
    # At the end of a gap cronsim's rule for fixed times gives an instant twice.
    assert list(ours) == sorted(set(takewhile(lambda tick: tick <= end, theirs)))
