"""The hand on the queue as methods, for everything that has a way to the database: `Client`, `AsyncClient` and `Tasuki`.

What they do is in `store.select`, `store.change` and `store.queues`; here it gets its names. Those modules are imported
when a method is called: `Tasuki` is loaded in every child, and a child has no database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tasuki_mp.backoff import MAX_DELAY
from tasuki_mp.job import NAME_PATTERN

if TYPE_CHECKING:
    import psycopg

    from tasuki_mp.store.change import Action, Changed
    from tasuki_mp.store.commands import Stack
    from tasuki_mp.store.queues import Queue
    from tasuki_mp.store.select import JobFilter, JobPage
    from tasuki_mp.store.steps import Steps

T = TypeVar("T")


class Steering:
    """Looking at jobs and queues, and changing them, on a blocking connection.

    Jobs are named by ids or by a `JobFilter`. Changes are made in portions of 1,000 that never wait for a row; without
    `conn` each portion is a transaction of its own. With `dry_run` they only count.
    """

    def _drive(self, steps: Steps[T], conn: psycopg.Connection[Any] | None) -> T:
        raise NotImplementedError

    def jobs(
        self,
        which: JobFilter | None = None,
        *,
        limit: int = 100,
        cursor: int | None = None,
        conn: psycopg.Connection[Any] | None = None,
    ) -> JobPage:
        """Jobs that match, newest first, live and finished ones; the page's cursor asks for those that follow."""
        return self._drive(_page(which, limit, cursor), conn)

    def cancel_matching(
        self, which: JobFilter, *, dry_run: bool = False, conn: psycopg.Connection[Any] | None = None
    ) -> Changed:
        """Cancel all pending and running jobs that match."""
        return self._drive(_cancel(which, dry_run=dry_run), conn)

    def retry(
        self,
        which: JobFilter | Iterable[int],
        *,
        again: bool = False,
        dry_run: bool = False,
        conn: psycopg.Connection[Any] | None = None,
    ) -> Changed:
        """Enqueue copies of finished jobs, with all attempts; the finished ones stay as they are.

        A filter without states means those that failed. A job of which a copy was made before is left out, unless `again`.
        A copy goes on from the job's checkpoint, if there is one.
        """
        return self._drive(_retry(which, again=again, dry_run=dry_run), conn)

    def delete(
        self,
        which: JobFilter | Iterable[int],
        *,
        dry_run: bool = False,
        conn: psycopg.Connection[Any] | None = None,
    ) -> Changed:
        """Delete pending and finished jobs with all that is known about them. Running ones stay."""
        return self._drive(_delete(which, dry_run=dry_run), conn)

    def move(
        self,
        which: JobFilter | Iterable[int],
        *,
        to: str,
        dry_run: bool = False,
        conn: psycopg.Connection[Any] | None = None,
    ) -> Changed:
        """Put pending jobs into the queue `to`."""
        return self._drive(_move(which, to, dry_run=dry_run), conn)

    def reschedule(
        self,
        which: JobFilter | Iterable[int],
        *,
        at: datetime | None = None,
        after: timedelta | float | None = None,
        dry_run: bool = False,
        conn: psycopg.Connection[Any] | None = None,
    ) -> Changed:
        """Let pending jobs be due at that instant, or that long after the database's now (seconds, or a timedelta)."""
        return self._drive(_reschedule(which, at, after, dry_run=dry_run), conn)

    def queues(self, *, conn: psycopg.Connection[Any] | None = None) -> list[Queue]:
        """Every queue that a handler declares, a supervisor works on, or something was said about."""
        return self._drive(_queues(), conn)

    def pause(self, queue: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Let nobody lease from the queue; what runs goes on. False if it was paused before."""
        return self._drive(_pause(queue), conn)

    def limit(
        self,
        queue: str,
        *,
        max_running: int | None = None,
        max_running_per_key: int | None = None,
        conn: psycopg.Connection[Any] | None = None,
    ) -> None:
        """Let no more jobs of a queue run at a time in the whole fleet, all together or with the same key.

        Both are set; None is no limit. What runs already counts, and goes on.
        """
        self._drive(_limit(queue, max_running, max_running_per_key), conn)

    def resume(self, queue: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Let the queue be leased from again, at once. False if it was not paused."""
        return self._drive(_resume(queue), conn)

    def stack(self, job_id: int, *, timeout: timedelta | float = 10.0) -> Stack:
        """Where a running job is now, on whichever host: the Python frames of its process, also while C code runs.

        Raises JobNotRunningError, NoAnswerError when its supervisor says nothing within the timeout, and CommandError if
        that can't tell.
        """
        return self._drive(_stack(job_id, timeout), None)


class AsyncSteering:
    """The same as `Steering`, for asyncio."""

    async def _drive(self, steps: Steps[T], conn: psycopg.AsyncConnection[Any] | None) -> T:
        raise NotImplementedError

    async def jobs(
        self,
        which: JobFilter | None = None,
        *,
        limit: int = 100,
        cursor: int | None = None,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> JobPage:
        """Jobs that match, newest first, live and finished ones; the page's cursor asks for those that follow."""
        return await self._drive(_page(which, limit, cursor), conn)

    async def cancel_matching(
        self, which: JobFilter, *, dry_run: bool = False, conn: psycopg.AsyncConnection[Any] | None = None
    ) -> Changed:
        """Cancel all pending and running jobs that match."""
        return await self._drive(_cancel(which, dry_run=dry_run), conn)

    async def retry(
        self,
        which: JobFilter | Iterable[int],
        *,
        again: bool = False,
        dry_run: bool = False,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> Changed:
        """Enqueue copies of finished jobs; see `Steering.retry`."""
        return await self._drive(_retry(which, again=again, dry_run=dry_run), conn)

    async def delete(
        self,
        which: JobFilter | Iterable[int],
        *,
        dry_run: bool = False,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> Changed:
        """Delete pending and finished jobs with all that is known about them. Running ones stay."""
        return await self._drive(_delete(which, dry_run=dry_run), conn)

    async def move(
        self,
        which: JobFilter | Iterable[int],
        *,
        to: str,
        dry_run: bool = False,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> Changed:
        """Put pending jobs into the queue `to`."""
        return await self._drive(_move(which, to, dry_run=dry_run), conn)

    async def reschedule(
        self,
        which: JobFilter | Iterable[int],
        *,
        at: datetime | None = None,
        after: timedelta | float | None = None,
        dry_run: bool = False,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> Changed:
        """Let pending jobs be due at that instant, or that long after the database's now (seconds, or a timedelta)."""
        return await self._drive(_reschedule(which, at, after, dry_run=dry_run), conn)

    async def queues(self, *, conn: psycopg.AsyncConnection[Any] | None = None) -> list[Queue]:
        """Every queue that a handler declares, a supervisor works on, or something was said about."""
        return await self._drive(_queues(), conn)

    async def pause(self, queue: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """Let nobody lease from the queue; what runs goes on. False if it was paused before."""
        return await self._drive(_pause(queue), conn)

    async def limit(
        self,
        queue: str,
        *,
        max_running: int | None = None,
        max_running_per_key: int | None = None,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> None:
        """Let no more jobs of a queue run at a time in the whole fleet, all together or with the same key."""
        await self._drive(_limit(queue, max_running, max_running_per_key), conn)

    async def resume(self, queue: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """Let the queue be leased from again, at once. False if it was not paused."""
        return await self._drive(_resume(queue), conn)

    async def stack(self, job_id: int, *, timeout: timedelta | float = 10.0) -> Stack:
        """Where a running job is now; see `Steering.stack`."""
        return await self._drive(_stack(job_id, timeout), None)


# ── what both of them do ──────────────────────────────────────────────────────────────────────────────────────────────


def _page(which: JobFilter | None, limit: int, cursor: int | None) -> Steps[JobPage]:
    from tasuki_mp.store import select

    return select.page(which or select.JobFilter(), limit=limit, cursor=cursor)


def _change(
    action: Action, which: JobFilter | Iterable[int], *, dry_run: bool, parameters: dict[str, Any] | None = None
) -> Steps[Changed]:
    from tasuki_mp.store import change

    return (change.count if dry_run else change.change)(action, which, parameters)


def _cancel(which: JobFilter, *, dry_run: bool) -> Steps[Changed]:
    from tasuki_mp.store.change import CANCEL

    return _change(CANCEL, which, dry_run=dry_run)


def _retry(which: JobFilter | Iterable[int], *, again: bool, dry_run: bool) -> Steps[Changed]:
    from tasuki_mp.store.change import RETRY

    return _change(RETRY, which, dry_run=dry_run, parameters={"again": again})


def _delete(which: JobFilter | Iterable[int], *, dry_run: bool) -> Steps[Changed]:
    from tasuki_mp.store.change import DELETE

    return _change(DELETE, which, dry_run=dry_run)


def _move(which: JobFilter | Iterable[int], to: str, *, dry_run: bool) -> Steps[Changed]:
    from tasuki_mp.store.change import MOVE

    return _change(MOVE, which, dry_run=dry_run, parameters={"to": _queue_name(to)})


def _reschedule(
    which: JobFilter | Iterable[int], at: datetime | None, after: timedelta | float | None, *, dry_run: bool
) -> Steps[Changed]:
    from tasuki_mp.store.change import RESCHEDULE, reschedule_parameters

    if (at is None) == (after is None):
        raise ValueError("say at= or after=, and only one of them")
    if at is not None and at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; say which one you mean, for example tzinfo=datetime.UTC")
    if at is not None and abs((at - datetime.now(UTC)).total_seconds()) > MAX_DELAY:
        raise ValueError(f"{at} is more than a hundred years away")
    delay = after.total_seconds() if isinstance(after, timedelta) else after
    if delay is not None and not 0 <= delay <= MAX_DELAY:
        raise ValueError(f"a job can be put off by 0 seconds to a hundred years, not by {delay} seconds")
    return _change(RESCHEDULE, which, dry_run=dry_run, parameters=reschedule_parameters(at, delay))


def _queues() -> Steps[list[Queue]]:
    from tasuki_mp.store import queues

    return queues.queues()


def _pause(queue: str) -> Steps[bool]:
    from tasuki_mp.store import queues

    return queues.pause(_queue_name(queue))


def _resume(queue: str) -> Steps[bool]:
    from tasuki_mp.store import queues

    return queues.resume(_queue_name(queue))


def _limit(queue: str, max_running: int | None, max_running_per_key: int | None) -> Steps[None]:
    from tasuki_mp.store import queues

    for name, least, value in (("max_running", 0, max_running), ("max_running_per_key", 1, max_running_per_key)):
        if value is not None and not least <= value < 2**31:
            raise ValueError(f"{name} is a whole number from {least} on, not {value!r}")
    return queues.limit(_queue_name(queue), max_running=max_running, max_running_per_key=max_running_per_key)


def _stack(job_id: int, timeout: timedelta | float) -> Steps[Stack]:
    from tasuki_mp.store import commands

    return commands.stack(job_id, timeout=timeout.total_seconds() if isinstance(timeout, timedelta) else timeout)


def _queue_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} is no queue name: 1 to 57 letters, digits, '_', '.', ':' or '-'")
    return name
