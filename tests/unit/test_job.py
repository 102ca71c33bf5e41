"""Jobs as immutable values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tasuki_mp.job import Job, JobRow, State

JOB = Job(JobRow(handler="noop", payload="{}"))


def test_each_method_gives_another_job_and_leaves_the_first_alone() -> None:
    later = JOB.after(hours=1).priority(0)
    assert (later.row.delay, later.row.priority) == (3600, 0)
    assert (JOB.row.delay, JOB.row.priority) == (0, 2)
    assert later != JOB
    assert Job(JobRow(handler="noop", payload="{}")) == JOB
    assert hash(JOB) == hash(Job(JobRow(handler="noop", payload="{}")))


def test_a_job_can_not_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        JOB.row = JobRow(handler="other", payload="{}")


def test_a_delay_may_be_a_timedelta_seconds_or_words() -> None:
    assert JOB.after(timedelta(minutes=1)).row.delay == 60
    assert JOB.after(5).row.delay == 5
    assert JOB.after(days=1, minutes=1, seconds=1).row.delay == 86_461


def test_an_instant_replaces_a_delay_and_a_delay_an_instant() -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    assert JOB.after(5).at(when).row.delay == 0
    assert JOB.at(when).after(5).row.scheduled_at is None


@pytest.mark.parametrize("delay", [-1, float("nan"), 4e9])
def test_a_delay_into_the_past_or_beyond_a_century_is_refused(delay: float) -> None:
    with pytest.raises(ValueError, match="hundred years"):
        JOB.after(delay)


def test_what_is_no_time_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="at\\(\\) takes a datetime with a time zone, not 'tomorrow'"):
        JOB.at("tomorrow")
    with pytest.raises(TypeError, match="after\\(\\) takes a timedelta or a number of seconds, not 'a while'"):
        JOB.after("a while")


def test_an_instant_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        JOB.at(datetime(2030, 1, 1))  # noqa: DTZ001  that is the point
    with pytest.raises(ValueError, match="hundred years"):
        JOB.at(datetime(2999, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("priority", [-1, 4])
def test_priorities_are_0_to_3(priority: int) -> None:
    with pytest.raises(ValueError, match=r"0 \(first\) to 3"):
        JOB.priority(priority)


def test_a_jobs_repr_shows_no_payload() -> None:
    assert "secret" not in repr(Job(JobRow(handler="noop", payload='{"a": "secret"}')))


def test_which_states_are_final() -> None:
    assert [state.value for state in State if state.is_final] == ["completed", "failed", "canceled"]
