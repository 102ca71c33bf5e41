"""The lease protocol: lease, heartbeat, finish, rescue, release. See the header of each file in `sql/queries`.

Every write after leasing is fenced by (id, lease_no, owner). Whoever lost its lease can therefore send what it likes:
nothing changes, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.job import JobRow, Lease
from tasuki_mp.limits import Reach
from tasuki_mp.outcome import Settled, SettledKind

LEASE: Final = sql.query("lease")
LEASE_LIMITED: Final = sql.query("lease_limited")
_HEARTBEAT: Final = sql.query("heartbeat")
FINISH: Final = sql.query("finish")
_VERDICT: Final = sql.query("verdict")
_RESCUE: Final = sql.query("rescue")
_RELEASE_UNKNOWN: Final = sql.query("release_unknown")

_BY_ID: Final = attrgetter("id", "lease_no")
_CLOCK_SLACK: Final = 60.0
"""Seconds by which a lease may be older for the database than for us: two clocks run apart slowly."""

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
Connection = psycopg.Connection[tuple[Any, ...]]

Verdict = Literal["applied", "duplicate", "stale", "again"]
"""What became of an outcome. `applied`: written now. `duplicate`: an earlier finish had written it, and its reply was
lost. `stale`: the lease is no longer ours, nothing was written. `again`: somebody has the row locked; send it again."""
BeatVerdict = Literal["held", "cancel", "busy", "lost"]


class LeaseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A range of the lease index: a queue and priority, behind the watermark (exclusive) if one is given."""

    queue: str
    priority: int
    after_at: datetime | None = None
    after_id: int = 0
    limit: int


class FinishItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How one attempt ended. `usage` is JSON text; times are seconds of this host's clock, as of now."""

    id: int
    lease_no: int
    settled: Settled
    usage: str = "{}"
    ran_for: float | None = None
    """Since the handler was entered; None if it never was."""
    lease_age: float = 0.0
    """Since the request for its lease was sent."""
    output: str = ""
    checkpoint: str | None = None
    """What it left for the next attempt, as JSON text; empty if that is on record, None if there is none."""
    followups: Sequence[JobRow] = ()
    """Jobs to insert with a completion or a snooze, none of them with a unique key."""


class Finished(msgspec.Struct, frozen=True, gc=False):
    """What became of one item. `kind` is what is on record: a retry is `canceled` when somebody had asked for that."""

    id: int
    lease_no: int
    verdict: Verdict
    kind: SettledKind
    batch_id: int | None = None
    """The batch of a job that has ended for good by this."""


class Beat(msgspec.Struct, frozen=True):
    """One lease to prolong. The rest tells operators where a job runs, once it has been running for a while."""

    id: int
    lease_no: int
    pid: int | None = None
    slot: int | None = None
    ran_for: float | None = None


class Rescued(msgspec.Struct, frozen=True):
    id: int
    handler: str
    queue: str
    status: Literal["pending", "failed", "canceled"]
    attempt: int
    slot: int | None
    """Where its supervisor ran it, if that is on record."""


_Item = TypeVar("_Item", FinishItem, Beat)


async def lease(
    conn: AsyncConnection,
    *,
    owner: UUID,
    lease_for: float,
    entries: Sequence[LeaseEntry],
    reach: Reach,
    limit: int,
    sent_at: float,
    now: datetime | None = None,
) -> list[Lease]:
    """Take up to `limit` due jobs, each under a fresh lease of `lease_for` seconds.

    The entries come in the order of preference, each with its own limit; the leases come back in that order, and within
    an entry in the order of the index. Paused queues, held jobs and those out of `reach` are passed over. Returns fewer
    rather than wait.
    """
    if limit <= 0 or not entries:
        return []
    parameters = lease_parameters(owner, lease_for, entries, reach, limit, now)
    cursor = await conn.execute(LEASE, parameters, prepare=True, binary=True)
    rank = {(entry.queue, entry.priority): index for index, entry in enumerate(entries)}
    leases = [Lease(*(*row, sent_at)) for row in await cursor.fetchall()]
    leases.sort(key=lambda taken: (rank[taken.queue, taken.priority], taken.scheduled_at, taken.id))
    return leases


def lease_parameters(
    owner: UUID, lease_for: float, entries: Sequence[LeaseEntry], reach: Reach, limit: int, now: datetime | None
) -> dict[str, Any]:
    """The parameters of LEASE."""
    return {
        "owner": owner,
        "lease_for": lease_for,
        "queues": [entry.queue for entry in entries],
        "priorities": [entry.priority for entry in entries],
        "after_ats": [entry.after_at for entry in entries],
        "after_ids": [entry.after_id for entry in entries],
        "mosts": [entry.limit for entry in entries],
        **reach.parameters,
        "most": limit,
        "now": now,
    }


async def lease_limited(
    conn: AsyncConnection,
    *,
    owner: UUID,
    lease_for: float,
    queue: str,
    reach: Reach,
    limit: int,
    sent_at: float,
    now: datetime | None = None,
) -> list[Lease]:
    """Take up to `limit` due jobs from a queue that has limits. Nothing, while somebody else leases from it."""
    cursor = await conn.execute(
        LEASE_LIMITED,
        {
            "queue": queue,
            **reach.parameters,
            "owner": owner,
            "lease_for": lease_for,
            "most": limit,
            "now": now,
        },
        prepare=True,
        binary=True,
    )
    leases = [Lease(*(*row, sent_at)) for row in await cursor.fetchall()]
    leases.sort(key=lambda taken: (taken.priority, taken.scheduled_at, taken.id))
    return leases


async def finish(
    conn: AsyncConnection, *, owner: UUID, items: Sequence[FinishItem], notify: bool = True
) -> list[Finished]:
    """Write down how attempts ended; each item gets a verdict. Sending an item twice is harmless.

    Raises psycopg's error when the database refuses one of them; which one is for the caller to find. What was written
    by then is a duplicate the next time.
    """
    finished: list[Finished] = []
    for batch in _batches(items):
        finished += await _finish_batch(conn, owner, batch, notify=notify)
    return finished


async def _finish_batch(
    conn: AsyncConnection, owner: UUID, batch: Sequence[FinishItem], *, notify: bool
) -> list[Finished]:
    parameters = finish_parameters(owner, batch, notify=notify)
    rows = await (await conn.execute(FINISH, parameters, prepare=True, binary=True)).fetchall()
    finished = [Finished(row[0], row[1], "applied", row[2], row[4]) for row in rows if row[3]]
    if len(finished) < len(batch):
        asked = {row[0]: row[2] for row in rows if not row[3]}
        cursor = await conn.execute(_VERDICT, _verdict_parameters(owner, batch, asked))
        finished += [_judged(row, asked) for row in await cursor.fetchall()]
    return finished


def finish_one(conn: Connection, *, owner: UUID, item: FinishItem, notify: bool = True) -> Finished:
    """The same for one item, without asyncio."""
    parameters = finish_parameters(owner, [item], notify=notify)
    rows = conn.execute(FINISH, parameters, prepare=True, binary=True).fetchall()
    asked = {row[0]: row[2] for row in rows}
    if rows[0][3]:
        return Finished(item.id, item.lease_no, "applied", asked[item.id], rows[0][4])
    return _judged(conn.execute(_VERDICT, _verdict_parameters(owner, [item], asked)).fetchall()[0], asked)


def _judged(row: tuple[Any, ...], asked: Mapping[int, SettledKind]) -> Finished:
    job_id, lease_no, verdict, kind = row
    return Finished(job_id, lease_no, verdict, kind or asked[job_id])


def finish_parameters(owner: UUID, batch: Sequence[FinishItem], *, notify: bool) -> dict[str, Any]:
    """The parameters of FINISH; the items come by ascending id, each id once."""
    following = [(item.id, row) for item in batch for row in item.followups]
    rows = [row for _, row in following]
    return {
        "owner": owner,
        "ids": _numbers([item.id for item in batch]),
        "lease_nos": _numbers([item.lease_no for item in batch]),
        "kinds": "{" + ",".join([item.settled.kind for item in batch]) + "}",
        "results": [item.settled.result for item in batch],
        "errors": _texts([None if (e := item.settled.error) is None else _json(e) for item in batch]),
        "usages": [item.usage for item in batch],
        "outputs": _texts([item.output or None for item in batch]),
        "ran_fors": _numbers([item.ran_for for item in batch]),
        "checkpoints": _texts([item.checkpoint for item in batch]),
        "crashes": _numbers([int(item.settled.is_crash) for item in batch]),
        "delays": _numbers([item.settled.delay for item in batch]),
        "limits": _texts([None if (limits := item.settled.limits) is None else limits.text for item in batch]),
        "f_ids": _numbers([job_id for job_id, _ in following]),
        "f_queues": [row.queue for row in rows],
        "f_handlers": [row.handler for row in rows],
        "f_payloads": [row.payload for row in rows],
        "f_priorities": _numbers([row.priority for row in rows]),
        "f_max_attempts": _numbers([row.max_attempts for row in rows]),
        "f_limits": [row.limits.text for row in rows],
        "f_keys": [row.key for row in rows],
        "f_ats": _instants([row.scheduled_at for row in rows]),
        "f_delays": _numbers([row.delay for row in rows]),
        "notify": notify,
    }


def _verdict_parameters(owner: UUID, batch: Sequence[FinishItem], asked: Collection[int]) -> dict[str, Any]:
    left = [item for item in batch if item.id in asked]
    return {
        "owner": owner,
        "ids": _numbers([item.id for item in left]),
        "lease_nos": _numbers([item.lease_no for item in left]),
        "age": max(item.lease_age for item in left) + _CLOCK_SLACK,
    }


def heartbeat(
    conn: Connection, *, owner: UUID, lease_for: float, beats: Sequence[Beat], now: datetime | None = None
) -> list[tuple[int, int, BeatVerdict]]:
    """Prolong these leases to `lease_for` seconds from now, and say that this supervisor lives.

    Never waits for a row. `cancel` was prolonged like `held`; `busy` is ours, but locked by somebody; `lost` is not.
    """
    verdicts: list[tuple[int, int, BeatVerdict]] = []
    for batch in _batches(beats) or [[]]:
        cursor = conn.execute(
            _HEARTBEAT,
            {
                "owner": owner,
                "lease_for": lease_for,
                "ids": _numbers([beat.id for beat in batch]),
                "lease_nos": _numbers([beat.lease_no for beat in batch]),
                "pids": _numbers([beat.pid for beat in batch]),
                "slots": _numbers([beat.slot for beat in batch]),
                "ran_fors": _numbers([beat.ran_for for beat in batch]),
                "now": now,
            },
            prepare=True,
            binary=True,
        )
        verdicts += cursor.fetchall()
    return verdicts


async def rescue(
    conn: AsyncConnection,
    *,
    owners: Sequence[UUID],
    is_gone: bool,
    limit: int,
    now: datetime | None = None,
    notify: bool = True,
) -> list[Rescued]:
    """Take back up to `limit` expired leases of these owners; if they are known to be gone, expired or not."""
    if not owners:
        return []
    cursor = await conn.execute(
        _RESCUE, {"owners": list(owners), "is_gone": is_gone, "most": limit, "now": now, "notify": notify}
    )
    return [Rescued(*row[:6]) for row in await cursor.fetchall()]


async def release_unknown(conn: AsyncConnection, *, owner: UUID, known: Sequence[int], notify: bool = True) -> int:
    """Give back the running jobs of this owner that are not in `known`, attempts refunded; returns how many there were.

    Those are leases whose reply was lost. Call it on the connection that leases, so that no lease is in flight.
    """
    cursor = await conn.execute(_RELEASE_UNKNOWN, {"owner": owner, "known": list(known), "notify": notify})
    return await _number(cursor)


async def _number(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> int:
    row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0


def _numbers(values: Sequence[float | None]) -> str:
    """An array literal.

    psycopg would send a list of int as smallint[], integer[] or bigint[], whatever the largest needs: three prepared
    statements instead of one, and a cast of the whole array for every row that uses it. Lists of text go in binary: as
    text, escaping the quotes of their JSON costs more than the whole statement.
    """
    return "{" + ",".join(map(repr, values)).replace("None", "NULL") + "}"


def _texts(values: list[str | None]) -> list[str | None]:
    """The same for the statement in fewer bytes: what an array lacks at its end, it reads as null."""
    return [] if values.count(None) == len(values) else values


def _instants(values: Sequence[datetime | None]) -> str:
    """An array literal."""
    return "{" + ",".join(["NULL" if value is None else f'"{value.isoformat()}"' for value in values]) + "}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _batches(items: Sequence[_Item]) -> list[list[_Item]]:
    """The items by ascending id, each id once a batch: nearly always a single batch.

    An id is there twice when its lease was lost and the same supervisor has leased it again.
    """
    ordered = sorted(items, key=_BY_ID)
    if len({item.id for item in ordered}) == len(ordered):
        return [ordered] if ordered else []
    batches: list[list[_Item]] = []
    turn, last_id = 0, None
    for item in ordered:
        turn = turn + 1 if item.id == last_id else 0
        last_id = item.id
        if turn == len(batches):
            batches.append([])
        batches[turn].append(item)
    return batches
