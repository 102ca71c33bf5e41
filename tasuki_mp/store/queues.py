"""What people say about queues: paused or open, and how long their finished jobs are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from tasuki_mp import sql
from tasuki_mp.store.steps import Step, Steps

_LOOK: Final = sql.query("look_queues")
_PAUSE: Final = sql.query("pause_queue")
_RESUME: Final = sql.query("resume_queue")
_LIMIT: Final = sql.query("limit_queue")
_KEEP: Final = sql.query("keep_queue")


class Queue(msgspec.Struct, frozen=True):
    """A queue that somebody has spoken of: a handler declares it, a supervisor works on it, or something is said about it."""

    name: str
    paused_at: datetime | None = None
    keep_seconds: float | None = None
    """How long its finished jobs are kept, if that is shorter than for all others."""
    max_running: int | None = None
    max_running_per_key: int | None = None
    supervisors: int = 0
    """Living ones that work on it."""


def queues(*, now: datetime | None = None) -> Steps[list[Queue]]:
    """Every queue that is known by more than its jobs, by name."""
    rows = yield Step(_LOOK, {"now": now})
    return [Queue(*row) for row in rows]


def pause(queue: str) -> Steps[bool]:
    """Let nobody lease from it; what runs goes on. False if it was paused before."""
    return bool((yield Step(_PAUSE, {"queue": queue})))


def resume(queue: str) -> Steps[bool]:
    """Let it be leased from again, at once. False if it was not paused."""
    return bool((yield Step(_RESUME, {"queue": queue})))


def limit(queue: str, *, max_running: int | None, max_running_per_key: int | None) -> Steps[None]:
    """How many of its jobs, and of those with the same key, may run at a time in the whole fleet; None: no limit."""
    yield Step(_LIMIT, {"queue": queue, "max_running": max_running, "max_running_per_key": max_running_per_key})


def keep(queue: str, seconds: float | None) -> Steps[None]:
    """How long its finished jobs are kept; None: as long as all others."""
    yield Step(_KEEP, {"queue": queue, "seconds": seconds})
