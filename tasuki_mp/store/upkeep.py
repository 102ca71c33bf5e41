"""What keeps the queue in order around the lease protocol: who is alive, partitions, held jobs, what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.limits import Reach
from tasuki_mp.wire import HandlerInfo

_REGISTER: Final = sql.query("register")
_DEREGISTER: Final = sql.query("deregister")
REGISTER_HANDLERS: Final = sql.query("register_handlers")
_OTHER_SUPERVISORS: Final = sql.query("other_supervisors")
_POSTMASTER_UPTIME: Final = sql.query("postmaster_uptime")
_ENSURE_PARTITIONS: Final = sql.query("ensure_partitions")
_TRIM_ATTEMPTS: Final = sql.query("trim_attempts")
_NEXT_DUE: Final = sql.query("next_due")
_HOLD_UNKNOWN: Final = sql.query("hold_unknown")
_SAME_HANDLERS: Final = sql.query("same_handlers")
_RELEASE_HELD: Final = sql.query("release_held")
_RELEASE_KEYS: Final = sql.query("release_keys")
_DRAIN_LEFT: Final = sql.query("drain_left")
_DRAIN_REST: Final = sql.query("drain_rest")
_PAUSED_QUEUES: Final = sql.query("paused_queues")
_CLAIM: Final = sql.query("claim_upkeep")
_END_CLAIM: Final = sql.query("end_upkeep")

HOLD_BATCH: Final = 5000
"""Jobs of unknown handlers that are held, and looked at, by one statement."""
KEYS_BATCH: Final = 1000
"""Keys that one statement looks at."""
ATTEMPTS_KEPT: Final = 50
"""Rows of history that a live job keeps at most."""

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


class SupervisorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor as others see it. The process is named so that another one on its host can prove that it is gone."""

    owner: UUID
    host: str
    pid: int
    pid_started: int
    boot_id: str
    pid_ns: str
    version: str
    procs: int
    queues: list[str]
    handlers: list[str]
    lease_seconds: float
    schedules: list[str] | None = None
    """Those of its application; None if it fires none at all."""
    app: str | None = None
    """Its application, as `--app` names it."""


class OtherSupervisor(msgspec.Struct, frozen=True):
    """Somebody else who holds, or may hold, leases. An owner that is known by its expired leases only has host ''."""

    owner: UUID
    host: str
    pid: int
    pid_started: int
    boot_id: str
    pid_ns: str
    is_stale: bool
    lease_seconds: float = 0.0


class Namesake(NamedTuple):
    """Another application that brings handlers of names that ours has too, and one of the hosts that it runs on."""

    app: str
    handlers: list[str]
    host: str


class Ahead(NamedTuple):
    """What is due next."""

    seconds: float | None
    """Until the earliest job that may be leased; zero or less when one is due, None when there is none."""
    limited: list[str]
    """Those of the queues that have limits: their jobs count only before they become due."""
    looked_at: datetime
    """By the database's clock."""

    @property
    def is_any_due(self) -> bool:
        return self.seconds is not None and self.seconds <= 0


class Waits(NamedTuple):
    """Jobs that wait for others which nobody here will run, and one of those others."""

    jobs: int
    needs_id: int | None


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of the work of a set of handlers. `waiting` and `running` are counted to a thousand at most.

    What had to be left (`unknown` by handler, `paused` by queue, `larger` than this host by handler, `dependent` on jobs that
    are not run here by handler) is only counted once nothing waits and nothing runs, each job once.
    """

    waiting: int
    running: int
    next_due: float | None
    unknown: dict[str, int] = {}
    paused: dict[str, int] = {}
    larger: dict[str, int] = {}
    dependent: dict[str, Waits] = {}

    @property
    def is_any_left_behind(self) -> bool:
        """Whether there are jobs that had to be left."""
        return bool(self.unknown or self.paused or self.larger or self.dependent)


async def register(conn: AsyncConnection, row: SupervisorRow) -> None:
    """Say that this supervisor lives; again when what it works on has changed."""
    await conn.execute(_REGISTER, msgspec.structs.asdict(row))


async def deregister(conn: AsyncConnection, owner: UUID) -> bool:
    """Forget a supervisor; False if there was none, or if a running job still names it."""
    return bool(await _value(conn, _DEREGISTER, {"owner": owner}))


async def register_handlers(conn: AsyncConnection, infos: Sequence[HandlerInfo], version: str) -> None:
    """Remember these handlers and their defaults, for producers without the code. The newest start wins."""
    await conn.execute(REGISTER_HANDLERS, handler_parameters(infos, version))


async def same_handlers(conn: AsyncConnection, me: SupervisorRow) -> list[Namesake]:
    """Living applications but this supervisor's own that bring a handler of the same name, by their name."""
    parameters = {"owner": me.owner, "app": me.app, "handlers": me.handlers}
    return [Namesake(*row) for row in await (await conn.execute(_SAME_HANDLERS, parameters)).fetchall()]


def handler_parameters(infos: Sequence[HandlerInfo], version: str) -> dict[str, Any]:
    """The parameters of REGISTER_HANDLERS."""
    infos = sorted(infos, key=lambda info: info.name)
    return {
        "names": [info.name for info in infos],
        "queues": [info.queue for info in infos],
        "priorities": [info.priority for info in infos],
        "max_attempts": [info.max_attempts for info in infos],
        "options": [msgspec.json.encode(info.policy).decode() for info in infos],
        "version": version,
    }


async def other_supervisors(conn: AsyncConnection, *, own: UUID) -> list[OtherSupervisor]:
    """Everybody else whose leases may have to be rescued. Stale means not heard of for a whole lease."""
    cursor = await conn.execute(_OTHER_SUPERVISORS, {"own": own})
    return [OtherSupervisor(*row) for row in await cursor.fetchall()]


async def postmaster_uptime(conn: AsyncConnection) -> float:
    """Seconds since the database server started."""
    return float(await _value(conn, _POSTMASTER_UPTIME, {}))


async def ensure_partitions(conn: AsyncConnection, *, days: int = 7) -> int:
    """Make the missing partitions of the archive from yesterday to `days` ahead; returns how many. Safe at any time."""
    return int(await _value(conn, _ENSURE_PARTITIONS, {"days": days}))


async def trim_attempts(conn: AsyncConnection, ids: Sequence[int], *, keep: int = ATTEMPTS_KEPT) -> int:
    """Drop all but the newest `keep` rows of history of these live jobs; returns how many went."""
    cursor = await conn.execute(_TRIM_ATTEMPTS, {"ids": list(ids), "keep": keep})
    return cursor.rowcount


async def next_due(conn: AsyncConnection, *, queues: Sequence[str], reach: Reach) -> Ahead:
    """What is due next of the jobs that may be leased."""
    row = await (await conn.execute(_NEXT_DUE, {"queues": list(queues), **reach.parameters})).fetchone()
    if row is None:
        raise psycopg.InternalError("an aggregate without a row")
    return Ahead(*row)


async def hold_unknown(
    conn: AsyncConnection, *, queues: Sequence[str], grace: float = 600, limit: int = HOLD_BATCH
) -> int:
    """Hold jobs at the head of these queues whose handler nobody has known for `grace` seconds; returns how many."""
    return int(await _value(conn, _HOLD_UNKNOWN, {"queues": list(queues), "grace": grace, "most": limit}))


async def release_held(
    conn: AsyncConnection, *, handlers: Sequence[str], limit: int = 5000, notify: bool = True
) -> int:
    """Let go of jobs that were held because nobody knew these handlers; returns how many, at most `limit`."""
    return int(await _value(conn, _RELEASE_HELD, {"handlers": list(handlers), "most": limit, "notify": notify}))


async def release_keys(conn: AsyncConnection, *, limit: int = KEYS_BATCH, notify: bool = True) -> int:
    """Let go of the first job held for its key, of each key that runs less often than it may; returns how many."""
    let_go: int = 0
    queue = key = ""
    while True:
        place = {"queue": queue, "key": key, "most": limit, "notify": notify}
        cursor = await conn.execute(_RELEASE_KEYS, place)
        looked_at, freed, queue, key, _ = await cursor.fetchone() or (0, 0, "", "", 0)
        let_go += int(freed)
        if looked_at < limit:
            return let_go


async def drain_left(conn: AsyncConnection, *, queues: Sequence[str], reach: Reach, due_only: bool) -> Left:
    """What is left to do, here and on other hosts, for whoever works until nothing is."""
    known = [*reach.handlers, *reach.larger]
    scope = {"queues": list(queues), "due_only": due_only, "known_handlers": known, **reach.parameters}
    row = await (await conn.execute(_DRAIN_LEFT, scope)).fetchone()
    waiting, running = row or (0, 0)
    due = (await next_due(conn, queues=queues, reach=reach)).seconds
    if waiting or running:
        return Left(waiting=waiting, running=running, next_due=due)
    unknown, paused, larger, dependent = {}, {}, {}, {}
    for reason, name, jobs, needs_id in await (await conn.execute(_DRAIN_REST, scope)).fetchall():
        match reason:
            case "unknown":
                unknown[name] = jobs
            case "paused":
                paused[name] = jobs
            case "larger":
                larger[name] = jobs
            case "dependent":
                dependent[name] = Waits(jobs, needs_id)
            case _:
                waiting += jobs
    return Left(
        waiting=waiting, running=0, next_due=due, unknown=unknown, paused=paused, larger=larger, dependent=dependent
    )


async def paused_queues(conn: AsyncConnection) -> list[str]:
    """The names of the queues that somebody has paused."""
    return [name for (name,) in await (await conn.execute(_PAUSED_QUEUES)).fetchall()]


async def claim(conn: AsyncConnection, task: str, *, every: float) -> bool:
    """Take on a task of the whole fleet, unless somebody has begun with it within `every` seconds."""
    return bool(await _value(conn, _CLAIM, {"task": task, "every": every}))


async def end_claim(conn: AsyncConnection, task: str) -> None:
    """Say that the task is done, for whoever wonders."""
    await conn.execute(_END_CLAIM, {"task": task})


async def _value(conn: AsyncConnection, query: bytes, parameters: dict[str, Any]) -> Any:
    row = await (await conn.execute(query, parameters)).fetchone()
    return None if row is None else row[0]
