"""Dropping what has been kept for long enough: whole days at a time, and row by row for queues that want it shorter.

A day's partition is marked, detached CONCURRENTLY and dropped; that waits for whoever reads the archive, but nobody waits
for it. The connection must be in autocommit, with a statement_timeout and a lock_timeout that bound each wait. What was cut
off by one of them, or by the end of the program, is taken up where it stands the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import msgspec
from psycopg import errors as pg
from psycopg import sql as compose

from tasuki_mp import sql
from tasuki_mp.config import Keep
from tasuki_mp.store.steps import Step, Steps
from tasuki_mp.store.words import in_words

_LOOK: Final = sql.query("look_partitions")
_DELETE_CHECKPOINTS: Final = sql.query("delete_checkpoints")
_KEPT_QUEUES: Final = sql.query("look_kept_queues")
_DELETE_FINISHED: Final = sql.query("delete_finished")
_MARK_KEPT: Final = sql.query("mark_kept")
_DELETE_KEYS: Final = sql.query("delete_expired_keys")
_DELETE_BATCHES: Final = sql.query("delete_batches")

# Names of tables can't be parameters. These come from the catalog, and only if they look like those that we make.
_MARK_TABLE: Final = "COMMENT ON TABLE tasuki.{name} IS {mark}"
_DETACH: Final = "ALTER TABLE tasuki.{parent} DETACH PARTITION tasuki.{name} CONCURRENTLY"
_FINALIZE: Final = "ALTER TABLE tasuki.{parent} DETACH PARTITION tasuki.{name} FINALIZE"
_DROP: Final = "DROP TABLE tasuki.{name}"

MARK: Final = "tasuki-mp: its retention is over, it is to be dropped"
"""The comment of a table that is being dropped. A table that somebody detached to keep it has none, and stays."""
LOCK_TIMEOUT: Final = 2.0
STATEMENT_TIMEOUT: Final = 60.0

_COMPLETED: Final = "job_archive_completed"
_FAILED: Final = "job_archive_failed"
_STATES: Final = {_COMPLETED: ["completed"], _FAILED: ["failed", "canceled"]}
_BLOCKS: Final = 2000
"""Of a partition, that one statement deletes from: 16 MB."""
_PORTION: Final = 5000
"""Keys, or batches, that one statement deletes."""
_DAY: Final = 86_400.0


def kept_for(parent: str, keep: Keep) -> float | None:
    """How many seconds the rows of that table are kept; the history of attempts as long as any job. None: for ever."""
    match parent:
        case "job_archive_completed":
            return keep.completed
        case "job_archive_failed":
            return keep.failed
        case _:
            if keep.completed is None or keep.failed is None:
                return None
            return max(keep.completed, keep.failed)


class Partition(msgspec.Struct, frozen=True):
    """One day of the archive or of the history."""

    parent: str
    name: str
    day: date
    is_attached: bool
    is_detaching: bool
    """Somebody's DETACH CONCURRENTLY has begun and not ended."""
    is_marked: bool
    rows: int
    blocks: int
    bytes: int
    now: datetime
    """When this was looked at, by the database's clock."""

    @property
    def begins(self) -> datetime:
        return datetime.combine(self.day, datetime.min.time(), UTC)

    @property
    def ends(self) -> datetime:
        return self.begins + timedelta(days=1)


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What was dropped and deleted, or would be."""

    dropped: list[Partition]
    postponed: dict[str, str] = {}
    """Partition to reason: they go the next time."""
    deleted: dict[str, int] = {}
    """Queue to jobs, for queues with a retention of their own."""
    keys: int = 0
    """Unique keys whose interval was over."""
    batches: int = 0
    """Batches none of whose jobs is kept any more."""


def is_over(partition: Partition, keep: Keep) -> bool:
    """Whether nothing in it has to be kept any longer."""
    if not partition.is_attached or partition.is_detaching:
        return partition.is_marked  # else somebody detaches it to keep it
    seconds = kept_for(partition.parent, keep)
    return seconds is not None and partition.ends + timedelta(seconds=seconds) <= partition.now


def partitions(*, now: datetime | None = None) -> Steps[list[Partition]]:
    """All of them, the oldest first."""
    return list(_partitions((yield Step(_LOOK, {"mark": MARK, "now": now}))))


def _partitions(rows: Iterable[tuple[Any, ...]]) -> Iterator[Partition]:
    for parent, name, digits, *rest in rows:
        try:
            day = datetime.strptime(str(digits), "%Y%m%d").replace(tzinfo=UTC).date()
        except ValueError:
            continue  # no day, so no table of ours
        yield Partition(parent, name, day, *rest)


def prune(keep: Keep, *, now: datetime | None = None, dry_run: bool = False) -> Steps[Pruned]:
    """Drop what is over, and say what was dropped. What somebody holds up is postponed, not waited for."""
    found = yield from partitions(now=now)
    over = [partition for partition in found if is_over(partition, keep)]
    if dry_run:
        return Pruned(dropped=over)
    dropped: list[Partition] = []
    postponed: dict[str, str] = {}
    # One that is being detached stands in the way of every other of its table.
    for partition in sorted(found, key=lambda each: not each.is_detaching):
        if partition.is_detaching or partition in over:
            reason = yield from _drop(partition, is_over=partition in over)
            if reason:
                postponed[partition.name] = reason
            elif partition in over:
                dropped.append(partition)
    deleted: dict[str, int] = {}
    gone = {partition.name for partition in dropped}
    rest = [partition for partition in found if partition.name not in gone and partition.is_attached]
    for queue, since, until in (yield Step(_KEPT_QUEUES, {"now": now})):
        number = yield from _delete_finished(queue, since, until, rest)
        if number:
            deleted[queue] = number
    keys = yield from _delete_all(_DELETE_KEYS, {})
    batches = 0
    longest = kept_for("attempt", keep)
    if longest is not None:
        # Jobs end before their batch, and are kept to the end of the day.
        batches = yield from _delete_all(_DELETE_BATCHES, {"seconds": longest + _DAY, "now": now})
    return Pruned(dropped=dropped, postponed=postponed, deleted=deleted, keys=keys, batches=batches)


def _delete_all(query: bytes, parameters: dict[str, Any]) -> Steps[int]:
    """Portion by portion; how many in all."""
    deleted = 0
    while True:
        ((number,),) = yield Step(query, {**parameters, "most": _PORTION})
        deleted += int(number)
        if number < _PORTION:
            return deleted


def _drop(partition: Partition, *, is_over: bool) -> Steps[str]:
    """Detach and drop it, or only end a detaching that somebody else began; why it has to wait, or ''."""
    try:
        if partition.is_detaching:
            yield _ddl(_FINALIZE, partition)
        elif partition.is_attached:
            yield _ddl(_MARK_TABLE, partition)
            if partition.parent == _FAILED:
                yield Step(_DELETE_CHECKPOINTS, {"first": partition.begins, "last": partition.ends})
            yield _ddl(_DETACH, partition)
        if is_over:
            yield _ddl(_DROP, partition)
    except (pg.LockNotAvailable, pg.QueryCanceled):
        return "somebody has been reading or writing it for long"
    except (pg.UndefinedTable, pg.ObjectNotInPrerequisiteState, pg.WrongObjectType) as error:
        return f"somebody else is at it: {in_words(error)}"
    return ""


def _ddl(text: str, partition: Partition) -> Step:
    names = {"parent": compose.Identifier(partition.parent), "name": compose.Identifier(partition.name)}
    return Step(compose.SQL(text).format(**names, mark=compose.Literal(MARK)))


def _delete_finished(queue: str, since: datetime | None, until: datetime, found: list[Partition]) -> Steps[int]:
    """Delete this queue's jobs that finished in that time; how many."""
    number = 0
    for partition in found:
        states = _STATES.get(partition.parent)
        first = max(partition.begins, since or partition.begins)
        last = min(partition.ends, until)
        if states is None or first >= last:
            continue
        for block in range(0, partition.blocks, _BLOCKS):
            # The last range is open: the partition may have grown since it was measured.
            is_last = block + _BLOCKS >= partition.blocks
            blocks = {"first_block": block, "last_block": 2**32 - 1 if is_last else block + _BLOCKS}
            rows = yield Step(
                _DELETE_FINISHED, {"queue": queue, "states": states, "first": first, "last": last, **blocks}
            )
            number += rows[0][0]
    if since is None or until > since:
        yield Step(_MARK_KEPT, {"queue": queue, "at": until})
    return number
