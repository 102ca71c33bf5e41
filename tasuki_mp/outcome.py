"""How an attempt ended, and `settle()`, which decides what that means for the job. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from random import random as default_random
from typing import Literal, assert_never

import msgspec

from tasuki_mp.backoff import MAX_DELAY, Backoff
from tasuki_mp.job import DEFAULT_MAX_CRASHES
from tasuki_mp.limits import MAX_SECONDS, NONE, Change, Limits, parse_change

Seconds = float


def as_seconds(wait: timedelta | float, *, what: str) -> Seconds:
    """A wait that a user gave, in seconds; `what` names it in the error."""
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
    if not 0 <= seconds <= MAX_DELAY:  # NaN fails this too
        raise ValueError(f"{what} must lie between 0 seconds and a hundred years, not {wait!r}")
    return seconds


# ── what a handler may return ─────────────────────────────────────────────────────────────────────────────────────────


class Retry:
    """Try again, after `after` (a timedelta or seconds; else the handler's backoff): returned by a handler, or a rule.

    `memory` and `timeout` change the job's limits: by a factor (`"x2"`), or to a value (`"4GiB"`, seconds).
    """

    __slots__ = ("after", "memory", "timeout")

    def __init__(
        self,
        after: timedelta | float | None = None,
        *,
        memory: str | int | None = None,
        timeout: str | timedelta | float | None = None,
    ) -> None:
        self.after = None if after is None else as_seconds(after, what="Retry(after=…)")
        self.memory = None if memory is None else parse_change(memory, "memory")
        self.timeout = None if timeout is None else parse_change(timeout, "timeout")


class Snooze:
    """Returned by a handler: run again after `after` (a timedelta or seconds), without using an attempt."""

    __slots__ = ("after",)

    def __init__(self, after: timedelta | float) -> None:
        self.after = as_seconds(after, what="Snooze(after)")


class Cancel:
    """Returned by a handler: stop this job for good; `reason` is recorded."""

    __slots__ = ("reason",)

    def __init__(self, reason: str = "") -> None:
        self.reason = str(reason)


# ── what a handler declares ───────────────────────────────────────────────────────────────────────────────────────────


class ErrorKind(StrEnum):
    """The one word that says what went wrong with an attempt."""

    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASH = "crash"
    POISON = "poison"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELED = "canceled"
    BAD_PAYLOAD = "bad_payload"
    BAD_RESULT = "bad_result"
    UNKNOWN_HANDLER = "unknown_handler"


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What follows on one kind of failure: `Retry(…)`, or with `is_retry=False` the end of the job."""

    is_retry: bool = True
    after: Seconds | None = None
    memory: Change | None = None
    timeout: Change | None = None


DEFAULT_CANCEL_GRACE: Seconds = 5.0
DEFAULT_MAX_INTERRUPTIONS = 100


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler declares about failures: plain data, so that the supervisor can act on it without the application.

    `fence="kill"` kills a running job when its lease can no longer be trusted; the default lets it run on and asks the
    database when it is back.
    """

    max_crashes: int = DEFAULT_MAX_CRASHES
    backoff: Backoff = Backoff()
    fence: Literal["wait", "kill"] = "wait"
    limits: Limits = NONE
    cancel_grace: Seconds = DEFAULT_CANCEL_GRACE
    """What a running job has to end by itself once it was asked to, before it is killed."""
    max_interruptions: int = DEFAULT_MAX_INTERRUPTIONS
    """How often a job may be started and given back without using an attempt."""
    rules: dict[ErrorKind, Rule] = {}
    """Where the handler wants something else than the default."""
    on_failed: str | None = None
    """The handler that is told when a job finally fails; the database sees to that (`tasuki.follow_failure`)."""


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An attempt's error as it is stored. Text is safe for Postgres: no NUL, no lone surrogate, bounded."""

    kind: ErrorKind
    type: str
    message: str
    traceback: str = ""
    stack: str = ""
    """What its threads were doing when it exceeded a limit of time."""
    signal: str = ""
    """Such as `SIGSEGV`; empty when the process was not killed by a signal."""
    exit_code: int | None = None
    output: str = ""
    """The last that the job wrote, after the death of its process."""
    memory_peak: int | None = None
    """Bytes, where memory was the reason or the process died."""


# ── how an attempt ended ──────────────────────────────────────────────────────────────────────────────────────────────


class Returned(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The handler returned; `result` is its value as JSON text, None for None."""

    result: str | None = None


class AskedRetry(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The handler returned `Retry`; `delay` is the child's answer, None means the policy's backoff."""

    delay: Seconds | None = None
    memory: Change | None = None
    timeout: Change | None = None


class AskedSnooze(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The handler returned `Snooze`."""

    delay: Seconds


class AskedCancel(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The handler returned `Cancel`."""

    reason: str


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The handler raised, or its payload or result was bad. The child answered whether that may be retried, and when."""

    error: ErrorInfo
    is_retryable: bool = True
    delay: Seconds | None = None


class Died(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The child died while it ran this job, and nobody here killed it."""

    error: ErrorInfo


class Interrupted(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Stopped by this supervisor for reasons of its own after the handler had started: its shutdown, the host's memory."""

    error: ErrorInfo | None = None


class NotStarted(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The lease is given back before the handler was entered."""


class CancelObeyed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Somebody asked to cancel the job while it ran, and it was stopped."""


class Killed(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The supervisor killed the job because it exceeded a limit: the error's kind is `timeout` or `memory`."""

    error: ErrorInfo


Outcome = (
    Returned | AskedRetry | AskedSnooze | AskedCancel | Raised | Died | Interrupted | NotStarted | CancelObeyed | Killed
)

# ── what that means ───────────────────────────────────────────────────────────────────────────────────────────────────

SettledKind = Literal["completed", "failed", "canceled", "retry", "snooze", "release"]


class Settled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The decision that *finish* writes down.

    `retry`, `snooze` and `release` make the job pending again, due after `delay` seconds; the last two give the attempt
    back. `is_crash` adds one to the job's crashes.
    """

    kind: SettledKind
    result: str | None = None
    error: ErrorInfo | None = None
    delay: Seconds = 0.0
    is_crash: bool = False
    limits: Limits | None = None
    """The job's own limits from now on; None leaves them."""


def completed(outcome: Returned) -> Settled:
    """What a value means for its job, whatever the job's policy."""
    return Settled(kind="completed", result=outcome.result)


def settle(
    outcome: Outcome,
    policy: Policy,
    *,
    attempt: int,
    max_attempts: int,
    crashes: int,
    interruptions: int = 0,
    limits: Limits = NONE,
    memory_most: int | None = None,
    is_stopping: bool = False,
    random: Callable[[], float] = default_random,
) -> Settled:
    """What an attempt's end means for its job.

    `attempt` counts from 1 and includes this one; `crashes` and `interruptions` are those before it. `limits` are the
    job's own, `memory_most` is what this host could give at most; `is_stopping` says that this supervisor shuts down.
    """
    if isinstance(outcome, Returned):
        return completed(outcome)
    is_last = attempt >= max_attempts

    def again(error: ErrorInfo | None, delay: Seconds | None, *, is_crash: bool = False) -> Settled:
        rule = policy.rules.get(error.kind, _DEFAULT_RULE) if error is not None else _DEFAULT_RULE
        return retry(error, delay, rule, is_crash=is_crash)

    def retry(error: ErrorInfo | None, delay: Seconds | None, rule: Rule, *, is_crash: bool = False) -> Settled:
        if is_last or not rule.is_retry:
            return Settled(kind="failed", error=error, is_crash=is_crash)
        changed = _changed(rule, limits, policy.limits, memory_most)
        if changed is None:
            full = f"; it can't have more memory, this host has {memory_most:,} bytes for jobs" if memory_most else ""
            if error is not None:
                error = msgspec.structs.replace(error, message=error.message + full)
            return Settled(kind="failed", error=error, is_crash=is_crash)
        if delay is None:
            delay = rule.after
        wait = policy.backoff.delay(attempt, random=random) if delay is None else delay
        own = None if changed == limits else changed
        return Settled(kind="retry", error=error, delay=wait, is_crash=is_crash, limits=own)

    match outcome:
        case AskedRetry(delay, memory, timeout):
            if is_last:
                which = "this was its only attempt" if max_attempts == 1 else f"all {max_attempts} attempts are used up"
                used_up = f"the handler asked for another retry, and {which}"
                return Settled(kind="failed", error=ErrorInfo(kind=ErrorKind.ERROR, type="Retry", message=used_up))
            return retry(None, delay, Rule(memory=memory, timeout=timeout))
        case AskedSnooze(delay):
            if not is_stopping or delay > 0:
                return Settled(kind="snooze", delay=delay)
            # What it means is: go on elsewhere. That counts as an interruption like a kill at the end of the grace.
            if interruptions >= policy.max_interruptions:
                return again(_too_often(interruptions), None)
            return Settled(kind="release")
        case AskedCancel(reason):
            return Settled(kind="canceled", error=ErrorInfo(kind=ErrorKind.CANCELED, type="Cancel", message=reason))
        case Raised(error, is_retryable, delay):
            # A rule may say otherwise of what is final by its kind, not of what `retry_on` and `fail_on` have refused.
            if not is_retryable and not (error.kind in _FINAL_BY_KIND and error.kind in policy.rules):
                return Settled(kind="failed", error=error)
            return again(error, delay)
        case Died(error):
            if crashes + 1 >= policy.max_crashes:
                died = f"killed its process {crashes + 1} times, the limit; the last time: {error.message}"
                poison = msgspec.structs.replace(error, kind=ErrorKind.POISON, message=died)
                return Settled(kind="failed", error=poison, is_crash=True)
            return again(error, None, is_crash=True)
        case Killed(error):
            is_crash = error.kind is ErrorKind.MEMORY
            if is_crash and crashes + 1 >= policy.max_crashes:
                return Settled(kind="failed", error=error, is_crash=True)
            return again(error, None, is_crash=is_crash)
        case Interrupted(error):
            if max_attempts == 1:
                message = "its supervisor was stopped, and with max_attempts=1 a started job is never started again"
            elif interruptions >= policy.max_interruptions:
                return again(_too_often(interruptions), None)
            else:
                rule = policy.rules.get(ErrorKind.INTERRUPTED, _DEFAULT_RULE)
                if rule.is_retry:
                    return Settled(kind="release", error=error, delay=rule.after or 0.0)
                message = "its supervisor was stopped, and its handler's rule is to fail then"
            return Settled(kind="failed", error=_interrupted(message))
        case NotStarted():
            return Settled(kind="release")
        case CancelObeyed():
            message = "canceled while it ran"
            return Settled(kind="canceled", error=ErrorInfo(kind=ErrorKind.CANCELED, type="Canceled", message=message))
        case _:
            assert_never(outcome)


_DEFAULT_RULE = Rule()
_FINAL_BY_KIND = frozenset({ErrorKind.BAD_PAYLOAD, ErrorKind.BAD_RESULT})
"""What is not retried unless a rule says so."""


def _interrupted(message: str) -> ErrorInfo:
    return ErrorInfo(kind=ErrorKind.INTERRUPTED, type="Interrupted", message=message)


def _too_often(interruptions: int) -> ErrorInfo:
    return _interrupted(f"was started and interrupted {interruptions + 1} times, more often than max_interruptions")


def _changed(rule: Rule, own: Limits, declared: Limits, memory_most: int | None) -> Limits | None:
    """The job's own limits after a retry by this rule; None if it needs more memory than there is."""
    if rule.memory is None and rule.timeout is None:
        return own
    now = own.over(declared)
    memory = own.memory
    if rule.memory is not None and (more := rule.memory.of(now.memory)) is not None:
        memory = int(more)
        if memory_most is not None and memory > memory_most:
            if now.memory is not None and now.memory >= memory_most:
                return None
            memory = memory_most
    if rule.timeout is None:
        return msgspec.structs.replace(own, memory=memory)
    timeout, soft_timeout = _timeouts(rule.timeout, now)
    return msgspec.structs.replace(own, memory=memory, timeout=timeout, soft_timeout=soft_timeout)


def _timeouts(change: Change, now: Limits) -> tuple[Seconds | None, Seconds | None]:
    """Both limits of time, changed. The soft one keeps its proportion; where it is alone, it is the one that is meant."""
    if now.timeout is None and now.soft_timeout is not None:
        return None, min(MAX_SECONDS, change.of(now.soft_timeout) or MAX_SECONDS)
    timeout = change.of(now.timeout)
    if timeout is None:
        return None, None
    timeout = min(MAX_SECONDS, timeout)
    return timeout, now.soft_timeout * timeout / now.timeout if now.timeout and now.soft_timeout else None
