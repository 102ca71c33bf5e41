"""Finishing a job whose follow-ups are many, or have unique keys: on a connection of its own, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.job import JobRow
from tasuki_mp.store import bulk, work
from tasuki_mp.store.work import Finished, FinishItem

_SCHEDULE: Final = sql.query("schedule_of_job")
_SET_SCHEDULE: Final = sql.query("set_schedule")

Connection = psycopg.Connection[tuple[Any, ...]]


def finish_alone(
    conn: Connection, *, owner: UUID, item: FinishItem, followups: Iterable[JobRow], notify: bool = True
) -> Finished:
    """Write down how an attempt ended and insert its follow-up jobs: both, or neither unless the verdict is `applied`.

    The attempt comes first, so that a job may enqueue its own unique key again. Raises DatabaseError, ConflictError for
    a follow-up that asked to hear of one, and whatever `followups` raises; nothing was written then.
    """
    with conn.transaction():
        row = conn.execute(_SCHEDULE, {"id": item.id}).fetchone()
        schedule = row[0] if row is not None else None
        finished = work.finish_one(conn, owner=owner, item=item, notify=notify)
        # A snooze may have become a cancel.
        if finished.verdict == "applied" and finished.kind in {"completed", "snooze"}:
            if schedule is not None:
                conn.execute(_SET_SCHEDULE, {"schedule": schedule})
                followups = (msgspec.structs.replace(each, schedule=schedule) for each in followups)
            intake = bulk.Intake(followups)
            if intake:
                bulk.insert(conn, intake, is_ours=True, is_told=notify)
    return finished
