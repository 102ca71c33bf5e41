"""Schedules and their ticks: declared, fired, paused, looked at. See the header of each file in `sql/queries`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import schedule, sql
from tasuki_mp.errors import ScheduleError
from tasuki_mp.schedule import Misfire, Overlap, ScheduleInfo, Times
from tasuki_mp.store.steps import Step, Steps

REGISTER: Final = sql.query("register_schedules")
_REMOVE: Final = sql.query("remove_schedule")
_LOOK_OWN: Final = sql.query("look_own_schedules")
_TAKE: Final = sql.query("take_schedules")
_FIRE: Final = sql.query("fire_ticks")
_TRIM: Final = sql.query("trim_ticks")
_RUN: Final = sql.query("run_schedule")
_PAUSE: Final = sql.query("pause_schedule")
_LOOK: Final = sql.query("look_schedules")
_HISTORY: Final = sql.query("schedule_history")

TICKS_KEPT: Final = 1000
"""Rows of history that a schedule keeps."""

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]

Source = Literal["app", "client"]
TickVerdict = Literal["fired", "missed", "overlap", "manual"]
"""What became of a tick: its job was inserted; it came too late; a job of an earlier one was alive; asked for by hand."""


class Mine(NamedTuple):
    """A schedule that this supervisor minds: its ticks up to `decided_until` have been decided."""

    name: str
    times: Times
    decided_until: datetime


class Ticked(NamedTuple):
    """What became of a tick, now written down."""

    schedule: str
    tick: datetime
    verdict: TickVerdict
    job_id: int | None


class Fired(NamedTuple):
    """What a try to fire has come to. `decided` are the schedules that could be taken, as they stand now."""

    now: datetime | None
    """The database's clock; None if none could be taken."""
    decided: list[Mine]
    ticks: list[Ticked]


class ScheduleRow(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a schedule. `payload` and `limits` are JSON text."""

    name: str
    source: Source
    timetable: str
    tz: str
    misfire: Misfire
    misfire_after: float
    jitter: float
    overlap: Overlap
    starts_at: datetime | None
    ends_at: datetime | None
    handler: str
    queue: str
    priority: int
    max_attempts: int
    payload: str
    limits: str | None
    key: str | None
    tick_argument: str | None
    version: str
    declared_at: datetime
    paused_at: datetime | None
    decided_until: datetime
    last_tick: datetime | None
    last_verdict: TickVerdict | None
    last_job: int | None
    is_known: bool
    """Whether a living supervisor minds it."""
    now: datetime

    @property
    def times(self) -> Times:
        return Times(
            timetable=self.timetable,
            tz=self.tz,
            misfire=self.misfire,
            misfire_after=self.misfire_after,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
        )


class TickInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A tick of the past. `state` is that of its job; None if it has none, or its retention is over."""

    tick: datetime
    verdict: TickVerdict
    passed_over: int
    decided_at: datetime
    job_id: int | None
    state: str | None
    ran_for: float | None
    result: str | None


def register_parameters(
    infos: Sequence[ScheduleInfo], *, source: Source, version: str = "", notify: bool = True
) -> dict[str, Any]:
    """The parameters of REGISTER."""
    infos = sorted(infos, key=lambda info: info.name)
    times = [info.times for info in infos]
    jobs = [info.job for info in infos]
    return {
        "source": source,
        "version": version,
        "notify": notify,
        "names": [info.name for info in infos],
        "timetables": [each.timetable for each in times],
        "tzs": [each.tz for each in times],
        "misfires": [each.misfire for each in times],
        "misfire_afters": [float(each.misfire_after) for each in times],
        "starts_ats": [each.starts_at for each in times],
        "ends_ats": [each.ends_at for each in times],
        "jitters": [float(info.jitter) for info in infos],
        "overlaps": [info.overlap for info in infos],
        "tick_arguments": [info.tick_argument for info in infos],
        "handlers": [job.handler for job in jobs],
        "queues": [job.queue for job in jobs],
        "priorities": [job.priority for job in jobs],
        "max_attempts": [job.max_attempts for job in jobs],
        "payloads": [job.payload for job in jobs],
        "limits": [job.limits.text for job in jobs],
        "keys": [job.key for job in jobs],
    }


async def register(conn: AsyncConnection, infos: Sequence[ScheduleInfo], version: str, *, notify: bool = True) -> None:
    """Remember the schedules of an application. The newest start wins."""
    if infos:
        await conn.execute(REGISTER, register_parameters(infos, source="app", version=version, notify=notify))


async def look_own(
    conn: AsyncConnection, *, names: Sequence[str], handlers: Sequence[str]
) -> tuple[datetime, list[Mine]]:
    """The database's clock, and the schedules to mind for an application with these schedules and handlers."""
    cursor = await conn.execute(_LOOK_OWN, {"names": list(names), "handlers": list(handlers)})
    rows = await cursor.fetchall()
    return rows[0][0], [_mine(row) for row in rows if row[1] is not None]


async def fire(
    conn: AsyncConnection,
    *,
    owner: UUID,
    names: Sequence[str],
    before_commit: Callable[[], None] = lambda: None,
    now: datetime | None = None,
    notify: bool = True,
) -> Fired:
    """Decide the due ticks of these schedules, as far as nobody else is about it: each of them once in the whole fleet.

    A tick's row and its job are inserted together; what raises has inserted nothing. Raises ScheduleError if this
    machine can't say when one of them ticks.
    """
    async with conn.transaction():
        rows = await (await conn.execute(_TAKE, {"names": list(names), "now": now})).fetchall()
        if not rows:
            return Fired(None, [], [])
        at: datetime = rows[0][0]
        decided, parameters = _decided(rows, owner, notify=notify)
        if parameters is None:
            return Fired(at, decided, [])
        cursor = await conn.execute(_FIRE, parameters)
        written = [Ticked(*row[:4]) for row in await cursor.fetchall()]
        before_commit()
    return Fired(at, decided, written)


def fire_own(
    owner: UUID, *, names: Sequence[str], handlers: Sequence[str], now: datetime | None
) -> Steps[list[Ticked]]:
    """The same for all that an application with these schedules and handlers has to mind, in the caller's transaction."""
    own = [row[1] for row in (yield Step(_LOOK_OWN, {"names": list(names), "handlers": list(handlers)}))]
    rows = yield Step(_TAKE, {"names": [name for name in own if name is not None], "now": now})
    _, parameters = _decided(rows, owner, notify=True)
    return [] if parameters is None else [Ticked(*row[:4]) for row in (yield Step(_FIRE, parameters))]


async def trim(conn: AsyncConnection, *, keep: int = TICKS_KEPT, limit: int = 5000) -> int:
    """Drop all but the newest `keep` ticks of each schedule, at most `limit` at once; returns how many went."""
    row = await (await conn.execute(_TRIM, {"keep": keep, "most": limit})).fetchone()
    return int(row[0]) if row else 0


def store(info: ScheduleInfo) -> Steps[None]:
    """Store a schedule at run time. Raises ScheduleError if an application has declared that name."""
    if not (yield Step(REGISTER, register_parameters([info], source="client"))):
        raise ScheduleError(f"schedule {info.name!r}: an application declares one of that name; choose another")


def remove(name: str) -> Steps[bool]:
    """Remove a schedule; False if there is none. Raises ScheduleError for one that a living program declares."""
    if (yield Step(_REMOVE, {"name": name})):
        return True
    if not (yield Step(_LOOK, {"name": name})):
        return False
    raise ScheduleError(f"schedule {name!r}: a running program declares it; remove it there, or pause it here")


def look(name: str | None = None) -> Steps[list[ScheduleRow]]:
    """Every schedule by name, or the one of that name."""
    fields = ScheduleRow.__struct_fields__
    return [ScheduleRow(**dict(zip(fields, row, strict=True))) for row in (yield Step(_LOOK, {"name": name}))]


def history(name: str, *, limit: int) -> Steps[list[TickInfo]]:
    """The newest ticks of a schedule, newest first."""
    fields = TickInfo.__struct_fields__
    rows = yield Step(_HISTORY, {"name": name, "limit": limit})
    return [TickInfo(**dict(zip(fields, row, strict=True))) for row in rows]


def run(name: str) -> Steps[int | None]:
    """Insert a job of that schedule now; its id, None if there is no such schedule."""
    rows = yield Step(_RUN, {"name": name})
    return int(rows[0][0]) if rows else None


def pause(name: str, *, is_paused: bool) -> Steps[bool]:
    """Pause a schedule, or let it go on; False if there is no such schedule."""
    return bool((yield Step(_PAUSE, {"name": name, "is_paused": is_paused})))


def _decided(rows: Sequence[tuple[Any, ...]], owner: UUID, *, notify: bool) -> tuple[list[Mine], dict[str, Any] | None]:
    """Schedules that were taken, as they stand when their due ticks are decided; and what FIRE is told, if there are any."""
    decided: list[Mine] = []
    ticks: list[tuple[str, datetime, TickVerdict, int]] = []
    for row in rows:
        mine = _mine(row)
        what = schedule.decide(mine.times, after=mine.decided_until, now=row[0])
        if what is None:
            decided.append(mine)
            continue
        decided.append(mine._replace(decided_until=what.until))
        if what.missed is not None:
            ticks.append((mine.name, what.missed, "missed", what.passed_over))
        for index, tick in enumerate(what.fired):
            is_first = index == 0 and what.missed is None
            ticks.append((mine.name, tick, "fired", what.passed_over if is_first else 0))
    if not ticks:
        return decided, None
    columns = ("schedules", "ticks", "verdicts", "passed_overs")
    parameters = dict(zip(columns, map(list, zip(*ticks, strict=True)), strict=True))
    return decided, {"owner": owner, "notify": notify, **parameters}


def _mine(row: tuple[Any, ...]) -> Mine:
    _, name, timetable, tz, misfire, misfire_after, starts_at, ends_at, decided_until = row
    times = Times(
        timetable=timetable,
        tz=tz,
        misfire=misfire,
        misfire_after=misfire_after,
        starts_at=starts_at,
        ends_at=ends_at,
    )
    return Mine(name, times, decided_until)
