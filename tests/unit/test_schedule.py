"""Which ticks fire: on time, late, too late; start and end; and what a schedule refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasuki_mp.errors import ScheduleError
from tasuki_mp.job import JobRow
from tasuki_mp.schedule import MOST_AT_ONCE, MOST_COUNTED, Decided, Times, decide, info

JOB = JobRow(handler="report", payload="{}")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def schedule(when: str = "*/15 * * * *", **options: Any) -> Times:
    return info("report", when, JOB, **options).times


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def test_a_tick_fires_when_its_time_has_come_and_not_before() -> None:
    assert decide(schedule(), after=NOON - minutes(1), now=NOON - timedelta(microseconds=1)) is None
    assert decide(schedule(), after=NOON - minutes(1), now=NOON) == Decided([NOON], None, 0, NOON)


def test_a_decided_tick_does_not_fire_again() -> None:
    assert decide(schedule(), after=NOON, now=NOON + minutes(14)) is None


def test_ticks_that_are_a_little_late_fire_each() -> None:
    now = NOON + minutes(1)
    decided = decide(schedule("*/10 * * * * *"), after=NOON - timedelta(seconds=1), now=now)
    assert decided is not None
    assert decided.fired == [NOON + timedelta(seconds=10 * n) for n in range(7)]
    assert decided.missed is None and decided.passed_over == 0


def test_of_ticks_that_are_too_late_the_last_one_fires() -> None:
    now = NOON + minutes(44)
    assert decide(schedule(), after=NOON - minutes(1), now=now) == Decided(
        [NOON + minutes(30)], None, 2, NOON + minutes(30)
    )


def test_with_skip_none_of_those_that_are_too_late_fires() -> None:
    now = NOON + minutes(45)
    decided = decide(schedule(misfire="skip"), after=NOON - minutes(1), now=now)
    assert decided == Decided([NOON + minutes(45)], NOON + minutes(30), 2, NOON + minutes(45))


def test_misfire_after_says_what_is_too_late() -> None:
    patient = schedule(misfire="skip", misfire_after="1h")
    decided = decide(patient, after=NOON - minutes(1), now=NOON + minutes(60))
    assert decided is not None
    assert decided.fired == [NOON + minutes(15 * n) for n in range(5)]


@pytest.mark.parametrize("misfire", ["last", "skip"])
def test_a_long_outage_is_no_long_search(misfire: Any) -> None:
    now = NOON + timedelta(days=300, seconds=90)
    decided = decide(schedule("* * * * 6 *", misfire=misfire), after=NOON, now=now)  # each second, in June only
    assert decided is not None
    end_of_june = datetime(2026, 6, 30, 23, 59, 59, tzinfo=UTC)
    assert decided.until == end_of_june
    assert decided.passed_over == MOST_COUNTED - 1
    assert (decided.fired, decided.missed) == (([end_of_june], None) if misfire == "last" else ([], end_of_june))


def test_many_ticks_on_time_are_decided_in_portions() -> None:
    each_second = schedule("* * * * * *", misfire_after="1h")
    decided = decide(each_second, after=NOON, now=NOON + minutes(30))
    assert decided is not None
    assert decided.until == decided.fired[-1] < NOON + minutes(30)
    assert MOST_AT_ONCE <= len(decided.fired) <= MOST_AT_ONCE + 1


def test_start_and_end_both_tick() -> None:
    bounded = schedule("@hourly", start=NOON, end=NOON + minutes(120))
    found = list(bounded.ticks(NOON - timedelta(days=3)))
    assert found == [NOON, NOON + minutes(60), NOON + minutes(120)]
    assert decide(bounded, after=NOON + minutes(120), now=NOON + timedelta(days=1)) is None


def test_an_interval_begins_with_its_start() -> None:
    assert next(schedule("every 7m", start=NOON + minutes(1)).ticks(NOON)) == NOON + minutes(1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"misfire": "all"}, "misfire is 'skip' or 'last'"),
        ({"overlap": True}, "overlap is 'allow' or 'skip'"),
        ({"start": datetime(2026, 1, 1)}, "start is a datetime with a time zone"),  # noqa: DTZ001  that is the point
        ({"start": NOON, "end": NOON - minutes(1)}, "ends before it starts"),
        ({"jitter": "soon"}, "jitter: 'soon' is no duration"),
        ({"misfire_after": -1}, "misfire_after"),
        ({"tz": "Nowhere"}, "time zone"),
    ],
)
def test_what_a_schedule_can_not_have_is_refused_with_its_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ScheduleError, match=rf"schedule 'report': .*{reason}"):
        schedule(**options)


@pytest.mark.parametrize("name", ["", "two words", "x" * 201, "bell\a", 3])
def test_a_name_is_one_printable_word(name: Any) -> None:
    with pytest.raises(ScheduleError, match="a name has"):
        info(name, "@daily", JOB)
