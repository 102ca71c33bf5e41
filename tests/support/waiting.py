"""Waiting for a fact, with a deadline. The only place in the tests where time is allowed to pass by itself.

Prefer what wakes by itself (`wait_gone`, `wait_readable`, a line, a notification); poll only what can't tell.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

TIMEOUT = 90.0
"""Seconds. Far more than anything takes, for machines that are busy: a test that waits this long has failed."""
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


class NotInTimeError(AssertionError):
    """The fact did not come about in time; says which, and what was seen last."""


def wait_until(fact: Callable[[], T], what: str = "", *, timeout: float = TIMEOUT) -> T:
    """What `fact()` returns, once that is true in the sense of `if`."""
    pauses = _pauses(timeout)
    while not (seen := fact()):
        if (pause := next(pauses, None)) is None:
            raise NotInTimeError(f"not within {timeout:g} s: {what or fact}; last seen: {seen!r}")
        time.sleep(pause)  # noqa: TID251 -- the one place for it
    return seen


async def wait_until_async(
    fact: Callable[[], Awaitable[T]],
    what: str = "",
    *,
    timeout: float = TIMEOUT,
) -> T:
    """`wait_until` for a coroutine function, on the running loop."""
    pauses = _pauses(timeout)
    while not (seen := await fact()):
        if (pause := next(pauses, None)) is None:
            raise NotInTimeError(f"not within {timeout:g} s: {what or fact}; last seen: {seen!r}")
        await asyncio.sleep(pause)
    return seen


def wait_for_row(
    conn: psycopg.Connection[Any],
    sql: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    timeout: float = TIMEOUT,
) -> tuple[Any, ...]:
    """The first row of the query, once it returns one; on a connection in autocommit."""
    row: tuple[Any, ...] = wait_until(
        lambda: conn.execute(sql, params).fetchone() or (), f"{sql} {params or ''}", timeout=timeout
    )
    return row


def wait_for_lock_wait(conn: psycopg.Connection[Any], *, timeout: float = TIMEOUT) -> int:
    """The pid of a backend of this database that waits for a lock, once there is one."""
    sql = """SELECT pid FROM pg_stat_activity
              WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    return int(wait_for_row(conn, sql, timeout=timeout)[0])


def wait_readable(fd: int, *, timeout: float = TIMEOUT) -> None:
    """Until there is something to read, or the other end is closed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise NotInTimeError(f"nothing to read from descriptor {fd} within {timeout:g} s")


def wait_gone(pid: int, *, timeout: float = TIMEOUT) -> None:
    """Until that process has ended. It need not be a child; a zombie counts as ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(pidfd, timeout=timeout)
    except NotInTimeError:
        raise NotInTimeError(f"process {pid} still lives after {timeout:g} s") from None
    finally:
        os.close(pidfd)


def _pauses(timeout: float) -> Iterator[float]:
    """Seconds to wait before each further look, growing; ends at the deadline."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
