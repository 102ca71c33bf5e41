"""What a handler declares beside its signature: where its jobs wait, how often they are tried, what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

from tasuki_mp.backoff import Backoff
from tasuki_mp.errors import HandlerError
from tasuki_mp.job import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    LOWEST_PRIORITY,
    NAME_PATTERN,
    PRIORITIES,
)
from tasuki_mp.limits import limits
from tasuki_mp.outcome import (
    DEFAULT_CANCEL_GRACE,
    DEFAULT_MAX_INTERRUPTIONS,
    ErrorKind,
    Retry,
    Rule,
    as_seconds,
)

BackoffFunction = Callable[[int, BaseException], timedelta | float]
"""Seconds to wait (or a timedelta) before the next attempt, from the attempt that failed (from 1) and its exception."""

ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]
DEFAULT_BACKOFF: Final = Backoff()
RetryRule = Retry | Literal["fail"]
"""What follows on a kind of failure."""
RULES: Final = {
    f"on_{kind.value}": kind
    for kind in (
        ErrorKind.ERROR,
        ErrorKind.TIMEOUT,
        ErrorKind.MEMORY,
        ErrorKind.CRASH,
        ErrorKind.LOST,
        ErrorKind.INTERRUPTED,
        ErrorKind.BAD_PAYLOAD,
        ErrorKind.BAD_RESULT,
    )
}
"""The options that take a rule. Poison has none: it is what `max_crashes` says."""
_CHANGE_NO_LIMIT: Final = {
    "on_lost": "the database follows it, which can change no limit",
    "on_interrupted": "the job was stopped for no limit of its own",
}
_MOST_ATTEMPTS: Final = 2**31 - 1


class Options:
    """What a handler says about its jobs beside its signature. Raises HandlerError for what can't be."""

    __slots__ = (
        "backoff",
        "cancel_grace",
        "fail_on",
        "fence",
        "limits",
        "max_attempts",
        "max_crashes",
        "max_interruptions",
        "on_failed",
        "priority",
        "queue",
        "retry_on",
        "rules",
    )

    def __init__(
        self,
        what: str,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
        backoff: Backoff | BackoffFunction = DEFAULT_BACKOFF,
        retry_on: ExceptionTypes = (),
        fail_on: ExceptionTypes = (),
        fence: Literal["wait", "kill"] = "wait",
        timeout: timedelta | float | None = None,
        soft_timeout: timedelta | float | None = None,
        memory: str | int | None = None,
        cpus: int | None = None,
        cancel_grace: timedelta | float = DEFAULT_CANCEL_GRACE,
        max_interruptions: int = DEFAULT_MAX_INTERRUPTIONS,
        on_failed: object = None,
        **rules: RetryRule | None,
    ) -> None:
        # Whoever has no type checker learns it here, when the module is imported.
        name_of_queue: object = queue
        if not (isinstance(name_of_queue, str) and re.fullmatch(NAME_PATTERN, name_of_queue)):
            raise HandlerError(f"{what}: the queue's name {queue!r} must match {NAME_PATTERN}")
        if type(priority) is not int or priority not in PRIORITIES:
            raise HandlerError(f"{what}: priority is 0 (first) to {LOWEST_PRIORITY} (last), not {priority!r}")
        for name, value in (
            ("max_attempts", max_attempts),
            ("max_crashes", max_crashes),
            ("max_interruptions", max_interruptions),
        ):
            if type(value) is not int or not 1 <= value <= _MOST_ATTEMPTS:
                raise HandlerError(f"{what}: {name} is a whole number from 1 on, not {value!r}")
        if not isinstance(backoff, Backoff) and not callable(backoff):
            raise HandlerError(f"{what}: backoff is a Backoff or a function of (attempt, exception), not {backoff!r}")
        if fence not in ("wait", "kill"):
            raise HandlerError(f"{what}: fence is 'wait' or 'kill', not {fence!r}")
        try:
            self.limits = limits(timeout=timeout, soft_timeout=soft_timeout, memory=memory, cpus=cpus)
            self.cancel_grace = as_seconds(cancel_grace, what="cancel_grace")
        except (AttributeError, TypeError, ValueError) as error:
            raise HandlerError(f"{what}: {error}") from error
        self.max_interruptions = max_interruptions
        self.rules = _rules(what, rules)
        follower = getattr(on_failed, "name", on_failed)
        if follower is not None and not isinstance(follower, str):
            raise HandlerError(f"{what}: on_failed is a handler, or the name of one, not {on_failed!r}")
        self.on_failed: str | None = follower
        self.queue = queue
        self.priority = priority
        self.max_attempts = max_attempts
        self.max_crashes = max_crashes
        self.backoff = backoff
        self.retry_on = _exception_types(what, "retry_on", retry_on)
        self.fail_on = _exception_types(what, "fail_on", fail_on)
        self.fence = fence


def _rules(what: str, given: dict[str, RetryRule | None]) -> dict[ErrorKind, Rule]:
    """The rules by kind of failure, from `on_timeout=Retry(…)` or `on_timeout="fail"`."""
    found: dict[ErrorKind, Rule] = {}
    for option, wanted in given.items():
        if option not in RULES:
            raise HandlerError(f"{what}: there is no option {option!r}; rules are {', '.join(RULES)}")
        answer: object = wanted
        match answer:
            case None:
                continue
            case Retry() if option in _CHANGE_NO_LIMIT and (answer.memory is not None or answer.timeout is not None):
                raise HandlerError(f"{what}: {option} takes Retry(after) or 'fail'; {_CHANGE_NO_LIMIT[option]}")
            case Retry():
                found[RULES[option]] = Rule(after=answer.after, memory=answer.memory, timeout=answer.timeout)
            case "fail":
                found[RULES[option]] = Rule(is_retry=False)
            case _:
                raise HandlerError(f"{what}: {option} is Retry(…) or 'fail', not {answer!r}")
    return found


def _exception_types(what: str, option: str, given: Any) -> tuple[type[BaseException], ...]:
    kinds = given if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise HandlerError(f"{what}: {option} takes exception classes, not {kind!r}")
    return kinds
