"""settle(): what the end of an attempt means for its job."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasuki_mp.backoff import Backoff
from tasuki_mp.outcome import (
    AskedCancel,
    AskedRetry,
    AskedSnooze,
    Cancel,
    CancelObeyed,
    Died,
    ErrorInfo,
    ErrorKind,
    Interrupted,
    NotStarted,
    Outcome,
    Policy,
    Raised,
    Retry,
    Returned,
    Rule,
    Settled,
    Snooze,
    settle,
)

ERROR = ErrorInfo(kind=ErrorKind.ERROR, type="ValueError", message="bad")
BAD_PAYLOAD = ErrorInfo(kind=ErrorKind.BAD_PAYLOAD, type="PayloadError", message="no JSON")
BAD_RESULT = ErrorInfo(kind=ErrorKind.BAD_RESULT, type="ResultNotSerialisable", message="no JSON")
CRASH = ErrorInfo(kind=ErrorKind.CRASH, type="ChildDied", message="killed by SIGSEGV", signal="SIGSEGV")


def settled(
    outcome: Outcome, *, attempt: int = 1, max_attempts: int = 5, crashes: int = 0, **policy: object
) -> Settled:
    return settle(
        outcome, Policy(**policy), attempt=attempt, max_attempts=max_attempts, crashes=crashes, random=lambda: 0.5
    )


def test_a_value_completes_the_job_and_is_its_result() -> None:
    assert settled(Returned('{"a": 1}')) == Settled(kind="completed", result='{"a": 1}')


def test_a_value_completes_the_job_on_its_last_attempt_too() -> None:
    assert settled(Returned(), attempt=5).kind == "completed"


@pytest.mark.parametrize(("attempt", "delay"), [(1, 1.0), (2, 16.0), (3, 81.0), (4, 256.0)])
def test_an_exception_is_retried_after_the_fourth_power_of_the_attempt(attempt: int, delay: float) -> None:
    assert settled(Raised(ERROR), attempt=attempt) == Settled(kind="retry", error=ERROR, delay=delay)


def test_the_last_attempts_exception_fails_the_job() -> None:
    assert settled(Raised(ERROR), attempt=5) == Settled(kind="failed", error=ERROR)


def test_an_exception_that_may_not_be_retried_fails_the_job_at_once() -> None:
    assert settled(Raised(ERROR, is_retryable=False)) == Settled(kind="failed", error=ERROR)


@pytest.mark.parametrize(
    ("error", "refused", "rule", "kind"),
    [
        # What fail_on, retry_on or the kind itself refuses comes here as not retryable.
        (ERROR, False, None, "retry"),
        (ERROR, False, Rule(after=9.0), "retry"),
        (ERROR, False, Rule(is_retry=False), "failed"),
        (ERROR, True, None, "failed"),
        (ERROR, True, Rule(after=9.0), "failed"),
        (ERROR, True, Rule(is_retry=False), "failed"),
        *[(error, True, None, "failed") for error in (BAD_PAYLOAD, BAD_RESULT)],
        *[(error, True, Rule(after=9.0), "retry") for error in (BAD_PAYLOAD, BAD_RESULT)],
        *[(error, True, Rule(is_retry=False), "failed") for error in (BAD_PAYLOAD, BAD_RESULT)],
        (BAD_PAYLOAD, False, None, "retry"),
        (BAD_PAYLOAD, False, Rule(is_retry=False), "failed"),
    ],
)
def test_a_rule_goes_before_what_a_kind_means_and_never_before_fail_on(
    error: ErrorInfo, refused: bool, rule: Rule | None, kind: str
) -> None:
    rules = {} if rule is None else {error.kind: rule}
    end = settled(Raised(error, is_retryable=not refused), rules=rules)
    assert end.kind == kind
    if kind == "retry":
        assert end.delay == (9.0 if rule else 1.0)


def test_the_childs_answer_goes_before_the_policys_backoff() -> None:
    assert settled(Raised(ERROR, delay=7.5)).delay == 7.5


def test_a_policy_may_declare_its_own_backoff() -> None:
    assert settled(Raised(ERROR), attempt=3, backoff=Backoff(factor=2, power=1, jitter=0)).delay == 6


def test_retry_without_a_delay_takes_the_backoff_and_records_no_error() -> None:
    assert settled(AskedRetry(), attempt=2) == Settled(kind="retry", delay=16.0)
    assert settled(AskedRetry(0.0)).delay == 0


def test_retry_on_the_last_attempt_fails_and_says_why() -> None:
    last = settled(AskedRetry(3.0), attempt=5)
    assert last.kind == "failed"
    assert last.error is not None
    assert "all 5 attempts are used up" in last.error.message
    only = settled(AskedRetry(3.0), max_attempts=1)
    assert only.error is not None
    assert "this was its only attempt" in only.error.message


@pytest.mark.parametrize("attempt", [1, 5])
def test_snooze_never_fails_whatever_the_attempt(attempt: int) -> None:
    assert settled(AskedSnooze(30.0), attempt=attempt) == Settled(kind="snooze", delay=30.0)


def test_to_go_on_elsewhere_counts_as_an_interruption_and_is_bounded() -> None:
    def stopping(delay: float, interruptions: int, max_attempts: int = 5) -> str:
        policy = Policy(max_interruptions=2)
        return settle(
            AskedSnooze(delay),
            policy,
            attempt=1,
            max_attempts=max_attempts,
            crashes=0,
            interruptions=interruptions,
            is_stopping=True,
        ).kind

    assert [stopping(0.0, interruptions) for interruptions in (0, 1, 2)] == ["release", "release", "retry"]
    assert (stopping(0.0, 1, max_attempts=1), stopping(0.0, 2, max_attempts=1)) == ("release", "failed")
    assert stopping(30.0, 2) == "snooze", "that is what the handler would have asked for anyway"


def test_cancel_records_the_reason() -> None:
    canceled = settled(AskedCancel("no longer wanted"))
    assert canceled.kind == "canceled"
    assert canceled.error is not None
    assert canceled.error.message == "no longer wanted"


def test_a_death_is_charged_and_retried_with_the_backoff_of_an_error() -> None:
    assert settled(Died(CRASH), attempt=2) == Settled(kind="retry", error=CRASH, delay=16.0, is_crash=True)


def test_the_third_death_is_poison_though_attempts_are_left_and_names_the_signal() -> None:
    poison = settled(Died(CRASH), attempt=3, max_attempts=20, crashes=2)
    assert poison.kind == "failed"
    assert poison.is_crash
    assert poison.error is not None
    assert poison.error.kind is ErrorKind.POISON
    assert poison.error.signal == "SIGSEGV"
    assert "SIGSEGV" in poison.error.message


def test_a_death_on_the_last_attempt_fails_as_a_crash() -> None:
    assert settled(Died(CRASH), attempt=5, crashes=0) == Settled(kind="failed", error=CRASH, is_crash=True)


def test_an_interrupted_job_goes_back_unless_it_may_start_only_once() -> None:
    assert settled(Interrupted()) == Settled(kind="release")
    once = settled(Interrupted(), max_attempts=1)
    assert once.kind == "failed"
    assert once.error is not None
    assert once.error.kind is ErrorKind.INTERRUPTED


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_a_job_that_never_started_goes_back(max_attempts: int) -> None:
    assert settled(NotStarted(), max_attempts=max_attempts) == Settled(kind="release")


def test_an_obeyed_cancel_is_final() -> None:
    assert settled(CancelObeyed()).kind == "canceled"


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), timedelta(days=-1), 4e9])
def test_waits_that_make_no_sense_are_refused_where_they_are_written(wait: float | timedelta) -> None:
    with pytest.raises(ValueError, match="between 0 seconds and a hundred years"):
        Retry(wait)
    with pytest.raises(ValueError, match="between 0 seconds and a hundred years"):
        Snooze(wait)


def test_what_handlers_return_takes_timedeltas_and_seconds() -> None:
    assert Retry(timedelta(minutes=2)).after == 120
    assert Retry().after is None
    assert Snooze(0).after == 0
    assert Cancel().reason == ""


def test_backoff_is_capped_and_spread() -> None:
    backoff = Backoff(cap=100, jitter=0.1)
    assert backoff.delay(50, random=lambda: 0.0) == pytest.approx(90)
    assert backoff.delay(50, random=lambda: 1.0) == pytest.approx(110)


@pytest.mark.parametrize("wrong", [{"factor": -1}, {"power": 99}, {"cap": float("inf")}, {"jitter": 2}])
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Backoff"):
        Backoff(**wrong)
