"""Schedules that are stored at run time, as methods of `Client` and `AsyncClient`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg

from tasuki_mp import schedule
from tasuki_mp.job import Job, row_of
from tasuki_mp.schedule import MISFIRE_AFTER, Duration, Misfire, Overlap, ScheduleInfo
from tasuki_mp.store import schedules
from tasuki_mp.store.steps import Steps

T = TypeVar("T")


class Storing:
    """For a client with blocking connections."""

    def _drive(self, steps: Steps[T], conn: psycopg.Connection[Any] | None) -> T:
        raise NotImplementedError

    def schedule_job(
        self,
        job: Job,
        when: str | timedelta,
        /,
        *,
        name: str,
        tz: str = "UTC",
        misfire: Misfire = "last",
        misfire_after: Duration = MISFIRE_AFTER,
        jitter: Duration = 0.0,
        overlap: Overlap = "allow",
        start: datetime | None = None,
        end: datetime | None = None,
        conn: psycopg.Connection[Any] | None = None,
    ) -> None:
        """Store a schedule in the database, or replace the one of that name; see `Tasuki.schedule` for the times.

        Whichever supervisor knows the job's handler inserts the job at each tick, until `remove_schedule`. Raises
        ScheduleError, also if an application has declared one of that name.
        """
        info = _info(job, when, name, tz, misfire, misfire_after, jitter, overlap, start, end)
        self._drive(schedules.store(info), conn)

    def remove_schedule(self, name: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Remove a schedule and its history; False if there is none. Its jobs stay.

        One that a living program declares can only be removed from that program: ScheduleError.
        """
        return self._drive(schedules.remove(name), conn)


class AsyncStoring:
    """The same for asyncio."""

    async def _drive(self, steps: Steps[T], conn: psycopg.AsyncConnection[Any] | None) -> T:
        raise NotImplementedError

    async def schedule_job(
        self,
        job: Job,
        when: str | timedelta,
        /,
        *,
        name: str,
        tz: str = "UTC",
        misfire: Misfire = "last",
        misfire_after: Duration = MISFIRE_AFTER,
        jitter: Duration = 0.0,
        overlap: Overlap = "allow",
        start: datetime | None = None,
        end: datetime | None = None,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> None:
        """Store a schedule in the database, or replace the one of that name; see `Client.schedule_job`."""
        info = _info(job, when, name, tz, misfire, misfire_after, jitter, overlap, start, end)
        await self._drive(schedules.store(info), conn)

    async def remove_schedule(self, name: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """Remove a schedule and its history; see `Client.remove_schedule`."""
        return await self._drive(schedules.remove(name), conn)


def _info(
    job: Job,
    when: str | timedelta,
    name: str,
    tz: str,
    misfire: Misfire,
    misfire_after: Duration,
    jitter: Duration,
    overlap: Overlap,
    start: datetime | None,
    end: datetime | None,
) -> ScheduleInfo:
    return schedule.info(
        name,
        when,
        row_of(job),
        tz=tz,
        misfire=misfire,
        misfire_after=misfire_after,
        jitter=jitter,
        overlap=overlap,
        start=start,
        end=end,
    )
