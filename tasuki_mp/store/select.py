"""Which jobs are meant: a filter, and pages of those that it matches, newest first, over live and finished jobs alike."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

import msgspec

from tasuki_mp import sql
from tasuki_mp.job import State
from tasuki_mp.store.steps import Step, Steps

_LIST: Final = sql.query("list_jobs")

_NEWEST_BATCH: Final = sql.query("newest_batch")

_EXAMINE: Final = 20_000
"""Rows of each table that one statement looks at, for those that match to be among them."""
_MOST: Final = 10_000
"""Jobs of a page at most."""
ALL: Final = frozenset(State)
LIVE: Final = frozenset({State.PENDING, State.RUNNING})


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs for which all of this holds; what is None, or empty, is not asked."""

    queue: str | None = None
    handler: str | None = None
    key: str | None = None
    """Its key, or its unique key, with or without the handler in front."""
    batch: int | str | None = None
    """Its id; or its name, which means the newest batch of that name. A text of digits is an id if a batch has that."""
    states: frozenset[State] = frozenset()
    since: datetime | None = None
    """Finished since then; those that have not finished, enqueued since then."""
    error: str | None = None
    """Is in the last error's type or message, whatever the case."""

    @property
    def is_empty(self) -> bool:
        """Whether it matches every job."""
        return self == JobFilter()

    @property
    def parameters(self) -> dict[str, Any]:
        """What list_jobs.sql compares with."""
        return {
            "queue": self.queue,
            "handler": self.handler,
            "key": self.key,
            "batch": self.batch,
            "states": sorted(self.states) if self.states and self.states != ALL else None,
            "has_live": bool((self.states or ALL) & LIVE),
            "since": self.since,
            "error": self.error,
        }

    @property
    def is_rare(self) -> bool:
        """Whether many rows may have to be looked at for a few that match."""
        if self != JobFilter(states=self.states, since=self.since, batch=self.batch):
            return True
        # Finished jobs are cut by state and day already; live ones only by what they are compared with.
        return bool((self.states or ALL) & LIVE) and not self.is_empty


class JobSummary(msgspec.Struct, frozen=True):
    """A job as lists show it."""

    id: int
    queue: str
    handler: str
    state: State
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    held_by: str | None
    is_cancel_requested: bool
    retry_of: int | None
    key: str | None
    batch_id: int | None
    error: str | None
    """Type and message of the last error."""


class JobPage(msgspec.Struct, frozen=True):
    """Some of the jobs that match, newest first. `cursor` asks for those that follow; None: there are no more."""

    jobs: list[JobSummary]
    cursor: int | None


def batch_named(name: str) -> Steps[int | None]:
    """The batch that is meant: of digits the one with that id, if there is one; else the newest of that name."""
    id = int(name) if re.fullmatch(r"[0-9]{1,18}", name) else None
    rows = yield Step(_NEWEST_BATCH, {"name": name, "id": id})
    return rows[0][0] if rows else None


def page(which: JobFilter, *, limit: int = 100, cursor: int | None = None) -> Steps[JobPage]:
    """Up to `limit` jobs. Each statement on the way looks at a bounded number of rows, however few of them match."""
    if not 1 <= limit <= _MOST:
        raise ValueError(f"a page has 1 to {_MOST} jobs, not {limit}")
    if isinstance(which.batch, str):
        batch = yield from batch_named(which.batch)
        if batch is None:
            return JobPage([], None)
        which = msgspec.structs.replace(which, batch=batch)
    found: list[JobSummary] = []
    parameters = which.parameters
    examine = max(limit, _EXAMINE) if which.is_rare else limit
    while True:
        rows = yield Step(_LIST, {**parameters, "before": cursor, "examine": examine, "limit": limit - len(found)})
        reached: int | None = rows[0][0]
        found += [JobSummary(row[1], row[2], row[3], State(row[4]), *row[5:]) for row in rows if row[1] is not None]
        if len(found) >= limit:
            return JobPage(found, found[-1].id)
        if reached is None:
            return JobPage(found, None)
        cursor = reached
