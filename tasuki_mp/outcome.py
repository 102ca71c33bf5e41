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

Seconds = float


def as_seconds(wait: timedelta | float, *, what: str) -> Seconds:
    """A wait that a user gave, in seconds; `what` names it in the error."""
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else float(wait)
    if not 0 <= seconds <= MAX_DELAY:  # NaN fails this too
        raise ValueError(f"{what} must lie between 0 seconds and a hundred years, not {wait!r}")
    return seconds


# ── what a handler may return ─────────────────────────────────────────────────────────────────────────────────────────


class Retry:
    """Returned by a handler: try again, after `after` (a timedelta or seconds; else the handler's backoff)."""

    __slots__ = ("after",)

    def __init__(self, after: timedelta | float | None = None) -> None:
        self.after = None if after is None else as_seconds(after, what="Retry(after=…)")


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


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler declares about failures: plain data, so that the supervisor can act on it without the application.

    `fence="kill"` kills a running job when its lease can no longer be trusted; the default lets it run on and asks the
    database when it is back.
    """

    max_crashes: int = DEFAULT_MAX_CRASHES
    backoff: Backoff = Backoff()
    fence: Literal["wait", "kill"] = "wait"


class ErrorKind(StrEnum):
    """The one word that says what went wrong with an attempt."""

    ERROR = "error"
    CRASH = "crash"
    POISON = "poison"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELED = "canceled"
    BAD_PAYLOAD = "bad_payload"
    BAD_RESULT = "bad_result"
    UNKNOWN_HANDLER = "unknown_handler"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An attempt's error as it is stored. Text is safe for Postgres: no NUL, no lone surrogate, bounded."""

    kind: ErrorKind
    type: str
    message: str
    traceback: str = ""
    signal: str = ""
    """Such as `SIGSEGV`; empty when the process was not killed by a signal."""
    exit_code: int | None = None


# ── how an attempt ended ──────────────────────────────────────────────────────────────────────────────────────────────


class Returned(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The handler returned; `result` is its value as JSON text, None for None."""

    result: str | None = None


class AskedRetry(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The handler returned `Retry`; `delay` is the child's answer, None means the policy's backoff."""

    delay: Seconds | None = None


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
    """Stopped by this supervisor's own shutdown after the handler had started."""


class NotStarted(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The lease is given back before the handler was entered."""


class CancelObeyed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Somebody asked to cancel the job while it ran, and it was stopped."""


Outcome = Returned | AskedRetry | AskedSnooze | AskedCancel | Raised | Died | Interrupted | NotStarted | CancelObeyed

# ── what that means ───────────────────────────────────────────────────────────────────────────────────────────────────

SettledKind = Literal["completed", "failed", "canceled", "retry", "snooze", "release"]


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """The decision that *finish* writes down.

    `retry`, `snooze` and `release` make the job pending again, due after `delay` seconds; the last two give the attempt
    back. `is_crash` adds one to the job's crashes.
    """

    kind: SettledKind
    result: str | None = None
    error: ErrorInfo | None = None
    delay: Seconds = 0.0
    is_crash: bool = False


def settle(
    outcome: Outcome,
    policy: Policy,
    *,
    attempt: int,
    max_attempts: int,
    crashes: int,
    random: Callable[[], float] = default_random,
) -> Settled:
    """What an attempt's end means for its job.

    `attempt` counts from 1 and includes this one; `crashes` are those before it.
    """
    is_last = attempt >= max_attempts

    def again(error: ErrorInfo | None, delay: Seconds | None, *, is_crash: bool = False) -> Settled:
        if is_last:
            return Settled(kind="failed", error=error, is_crash=is_crash)
        wait = policy.backoff.delay(attempt, random=random) if delay is None else delay
        return Settled(kind="retry", error=error, delay=wait, is_crash=is_crash)

    match outcome:
        case Returned(result):
            return Settled(kind="completed", result=result)
        case AskedRetry(delay):
            if is_last:
                used_up = f"the handler asked for another retry, and all {max_attempts} attempts are used up"
                return Settled(kind="failed", error=ErrorInfo(kind=ErrorKind.ERROR, type="Retry", message=used_up))
            return again(None, delay)
        case AskedSnooze(delay):
            return Settled(kind="snooze", delay=delay)
        case AskedCancel(reason):
            return Settled(kind="canceled", error=ErrorInfo(kind=ErrorKind.CANCELED, type="Cancel", message=reason))
        case Raised(error, is_retryable, delay):
            return again(error, delay) if is_retryable else Settled(kind="failed", error=error)
        case Died(error):
            if crashes + 1 >= policy.max_crashes:
                died = f"killed its process {crashes + 1} times, the limit; the last time: {error.message}"
                poison = msgspec.structs.replace(error, kind=ErrorKind.POISON, message=died)
                return Settled(kind="failed", error=poison, is_crash=True)
            return again(error, None, is_crash=True)
        case Interrupted():
            if max_attempts > 1:
                return Settled(kind="release")
            message = "its supervisor was stopped, and with max_attempts=1 a started job is never started again"
            return Settled(
                kind="failed", error=ErrorInfo(kind=ErrorKind.INTERRUPTED, type="Interrupted", message=message)
            )
        case NotStarted():
            return Settled(kind="release")
        case CancelObeyed():
            message = "canceled while it ran"
            return Settled(kind="canceled", error=ErrorInfo(kind=ErrorKind.CANCELED, type="Canceled", message=message))
        case _:
            assert_never(outcome)
