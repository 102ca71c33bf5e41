"""What a job may take: as users write it, as it is stored, as a retry changes it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasuki_mp import Retry, Tasuki
from tasuki_mp.errors import HandlerError
from tasuki_mp.limits import MAX_SECONDS, NONE, Change, Limits, limits, parse_change, parse_size, read_limits
from tasuki_mp.outcome import AskedRetry, ErrorInfo, ErrorKind, Interrupted, Killed, Policy, Raised, Rule, settle

GIB = 1 << 30
MEMORY = ErrorInfo(kind=ErrorKind.MEMORY, type="MemoryExceeded", message="took too much")
TIMEOUT = ErrorInfo(kind=ErrorKind.TIMEOUT, type="Timeout", message="took too long")
ERROR = ErrorInfo(kind=ErrorKind.ERROR, type="ValueError", message="bad")


@pytest.mark.parametrize(
    ("written", "size"),
    [(4096, 4096), ("4096", 4096), ("2GiB", 2 * GIB), ("1.5 GB", 1_500_000_000), ("512m", 512_000_000), ("1KiB", 1024)],
)
def test_sizes_are_bytes_or_a_number_with_a_unit(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "2 gibibytes", "-1", 0, True, 1.5, None, "2EiB"])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"is no size|must lie"):
        parse_size(written)


def test_a_change_is_a_factor_or_a_value() -> None:
    assert parse_change("x2", "memory") == Change(factor=2.0)
    assert parse_change("2GiB", "memory") == Change(value=2 * GIB)
    assert parse_change(timedelta(minutes=1), "timeout") == Change(value=60.0)
    with pytest.raises(ValueError, match="neither seconds nor a factor"):
        parse_change("soon", "timeout")


def test_limits_come_back_from_the_database_as_they_were_stored() -> None:
    given = limits(timeout=timedelta(minutes=5), memory="2GiB", cpus=4)
    assert given.text is not None
    assert read_limits(given.text) == given
    assert NONE.text is None


@pytest.mark.parametrize("text", ['{"timeout": -1}', '{"speed": 3}', "[]", '{"cpus": 0}', '{"memory": "much"}'])
def test_stored_limits_that_nobody_can_mean_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="can't be used"):
        read_limits(text)


def test_a_soft_timeout_that_would_never_come_first_is_refused() -> None:
    with pytest.raises(HandlerError, match="must be below timeout"):
        Tasuki().handler(name="work", timeout=10, soft_timeout=10)(lambda: None)


def test_a_job_may_have_limits_of_its_own() -> None:
    app = Tasuki()

    @app.handler(timeout=10, memory="1GiB")
    def work() -> None: ...

    job = work.job().limits(timeout=60).limits(cpus=2)
    assert job.row.limits == Limits(timeout=60, cpus=2)
    assert job.row.limits.over(work.info.policy.limits) == Limits(timeout=60, memory=GIB, cpus=2)


@pytest.mark.parametrize(
    "options",
    [
        {"on_memory": "again"},
        {"on_poison": "fail"},
        {"on_timeout": 3},
        *[
            {f"on_{kind}": retry}
            for kind in ("lost", "interrupted")
            for retry in (Retry(memory="x2"), Retry(timeout=9))
        ],
    ],
)
def test_rules_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(HandlerError, match="on_"):
        Tasuki().handler(name="work", **options)(lambda: None)  # type: ignore[call-overload]


def test_a_rule_raises_the_memory_of_the_next_attempt_up_to_what_the_host_has() -> None:
    policy = Policy(limits=Limits(memory=GIB), rules={ErrorKind.MEMORY: Rule(memory=Change(factor=2))})
    first = settle(Killed(MEMORY), policy, attempt=1, max_attempts=5, crashes=0, memory_most=3 * GIB)
    assert (first.kind, first.limits) == ("retry", Limits(memory=2 * GIB))
    second = settle(
        Killed(MEMORY), policy, attempt=2, max_attempts=5, crashes=1, limits=Limits(memory=2 * GIB), memory_most=3 * GIB
    )
    assert (second.kind, second.limits) == ("retry", Limits(memory=3 * GIB))
    third = settle(
        Killed(MEMORY), policy, attempt=3, max_attempts=5, crashes=0, limits=Limits(memory=3 * GIB), memory_most=3 * GIB
    )
    assert third.kind == "failed"
    assert third.error is not None
    assert "can't have more memory" in third.error.message


def test_what_a_handler_asks_for_changes_the_limits_of_its_next_attempt() -> None:
    asked = Retry(5, timeout="x1.5")
    settled = settle(
        AskedRetry(asked.after, asked.memory, asked.timeout),
        Policy(limits=Limits(timeout=10)),
        attempt=1,
        max_attempts=3,
        crashes=0,
    )
    assert (settled.kind, settled.delay, settled.limits) == ("retry", 5.0, Limits(timeout=15))


@pytest.mark.parametrize(
    ("change", "declared", "wanted"),
    [
        ("x1.5", Limits(timeout=10, soft_timeout=8), Limits(timeout=15, soft_timeout=12)),
        (30, Limits(timeout=10, soft_timeout=8), Limits(timeout=30, soft_timeout=24)),
        ("x2", Limits(soft_timeout=8), Limits(soft_timeout=16)),
        (30, Limits(soft_timeout=8), Limits(soft_timeout=30)),
        (30, Limits(), Limits(timeout=30)),
        ("x1000", Limits(timeout=MAX_SECONDS / 2, soft_timeout=8), Limits(timeout=MAX_SECONDS, soft_timeout=16)),
    ],
)
def test_both_limits_of_time_change_together(change: str | int, declared: Limits, wanted: Limits) -> None:
    rule = Rule(timeout=parse_change(change, "timeout"))
    policy = Policy(limits=declared, rules={ErrorKind.TIMEOUT: rule})
    assert settle(Killed(TIMEOUT), policy, attempt=1, max_attempts=5, crashes=0).limits == wanted


def test_a_rule_can_end_the_job_at_the_first_failure_of_its_kind() -> None:
    policy = Policy(rules={ErrorKind.TIMEOUT: Rule(is_retry=False)})
    assert settle(Killed(TIMEOUT), policy, attempt=1, max_attempts=5, crashes=0).kind == "failed"
    assert settle(Raised(ERROR), policy, attempt=1, max_attempts=5, crashes=0).kind == "retry"


def test_a_rule_can_retry_what_would_fail_at_once() -> None:
    bad = ErrorInfo(kind=ErrorKind.BAD_RESULT, type="ResultTooLarge", message="large")
    policy = Policy(rules={ErrorKind.BAD_RESULT: Rule(after=3.0)})
    settled = settle(Raised(bad, is_retryable=False), policy, attempt=1, max_attempts=5, crashes=0)
    assert (settled.kind, settled.delay) == ("retry", 3.0)


def test_memory_counts_as_a_crash_and_timeouts_do_not() -> None:
    assert settle(Killed(MEMORY), Policy(), attempt=1, max_attempts=5, crashes=0).is_crash
    assert not settle(Killed(TIMEOUT), Policy(), attempt=1, max_attempts=5, crashes=0).is_crash
    assert settle(Killed(MEMORY), Policy(), attempt=3, max_attempts=5, crashes=2).kind == "failed"


def test_interruptions_are_free_until_there_are_too_many() -> None:
    policy = Policy(max_interruptions=2)
    assert settle(Interrupted(), policy, attempt=1, max_attempts=5, crashes=0, interruptions=1).kind == "release"
    again = settle(Interrupted(), policy, attempt=1, max_attempts=5, crashes=0, interruptions=2)
    assert again.kind == "retry"
    assert again.error is not None
    assert again.error.kind is ErrorKind.INTERRUPTED
    assert settle(Interrupted(), policy, attempt=5, max_attempts=5, crashes=0, interruptions=2).kind == "failed"
