"""What people do to many jobs at once: cancel, retry, delete, move, reschedule; named by ids or by a filter.

In portions of 1,000, each a statement and transaction of its own that never waits for a row and never locks a table: what
somebody else holds is tried again, and in the end reported. Every statement decides by what it has locked, so a job that
has changed since it was listed is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from tasuki_mp import sql
from tasuki_mp.job import State
from tasuki_mp.store.select import ALL, LIVE, JobFilter, page
from tasuki_mp.store.steps import Pause, Step, Steps

_ENSURE_PARTITIONS: Final = sql.query("ensure_partitions")
_LOCK_RETRIES: Final = sql.query("lock_retries")
_STATES: Final = sql.query("look_states")
_COPIES: Final = sql.query("look_copies")

PORTION: Final = 1000
_TRIES: Final = 6
_FIRST_PAUSE: Final = 0.05
"""Doubles at each try: a second and a half in all for what somebody else holds."""

Verb = Literal["cancel", "retry", "delete", "move", "reschedule"]
Skip = Literal["running", "finished", "live", "locked", "changed", "there", "retried before", "key taken", "unknown"]
"""Why a job was left as it is: it runs; it has finished; it has not finished; somebody else had it locked all the while; it
is no longer in a state and queue that was meant; it is in that queue already; a copy of it was made before; another job
stands for its unique key; there is none."""


class Action(msgspec.Struct, frozen=True):
    """What is done to jobs of which states, and by which statement."""

    verb: Verb
    query: bytes
    usual: str
    """The verdict that means that it was done; of a running job that is to be canceled, it is "requested"."""
    possible: frozenset[State]
    """A job in another state can't be meant."""
    default: frozenset[State]
    """The states that are meant when a filter names none."""


_FINAL: Final = ALL - LIVE
CANCEL: Final = Action("cancel", sql.query("cancel_jobs"), "canceled", LIVE, LIVE)
RETRY: Final = Action("retry", sql.query("retry_jobs"), "retried", _FINAL, frozenset({State.FAILED}))
DELETE: Final = Action("delete", sql.query("delete_jobs"), "deleted", ALL, ALL - {State.RUNNING})
MOVE: Final = Action("move", sql.query("move_jobs"), "moved", LIVE, frozenset({State.PENDING}))
RESCHEDULE: Final = Action("reschedule", sql.query("reschedule_jobs"), "rescheduled", LIVE, frozenset({State.PENDING}))


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    done: int
    """Jobs for which it was done. A running job that is to be canceled counts: its supervisor stops it in a moment."""
    skipped: dict[str, int] = {}
    """Jobs that were left as they are, by reason: see `Skip`."""
    verdicts: dict[int, str] = {}
    """What came of each job, if they were named by ids."""
    copies: dict[int, int] = {}
    """The new job of each that was retried, now or before, if they were named by ids."""


def meant(action: Action, which: JobFilter) -> JobFilter:
    """The filter as the action understands it: only states that it can do anything to. Raises ValueError for others."""
    states = which.states or action.default
    if not states <= action.possible:
        wrong = ", ".join(sorted(states - action.possible))
        right = ", ".join(sorted(action.possible))
        raise ValueError(f"{action.verb} is not for jobs that are {wrong}; only for {right}")
    return msgspec.structs.replace(which, states=states)


def count(
    action: Action, which: JobFilter | Iterable[int], parameters: Mapping[str, Any] | None = None
) -> Steps[Changed]:
    """What the action would most likely do, without doing anything."""
    counts: Counter[str] = Counter()
    copies: dict[int, int] = {}
    is_once = action is RETRY and not (parameters or {}).get("again")
    if isinstance(which, JobFilter):
        which = meant(action, which)
        cursor: int | None = None
        while True:
            found = yield from page(which, limit=10 * PORTION, cursor=cursor)
            foreseen = {job.id: forecast(action, job.state) for job in found.jobs}
            if is_once and foreseen:
                ends = [job.finished_at for job in found.jobs if job.finished_at is not None]
                made = yield Step(_COPIES, {"ids": list(foreseen), "first": min(ends, default=None)})
                foreseen |= {job_id: "retried before" for job_id, _ in made}
            counts.update(foreseen.values())
            cursor = found.cursor
            if cursor is None:
                break
        verdicts: dict[int, str] = {}
    else:
        states: dict[int, State] = {}
        asked = sorted(set(which))
        for start in range(0, len(asked), PORTION):
            ids = asked[start : start + PORTION]
            rows = yield Step(_STATES, {"ids": ids})
            states |= {job_id: State(state) for job_id, state in rows}
            if is_once:
                made = yield Step(_COPIES, {"ids": ids, "first": None})
                copies |= {row[0]: row[1] for row in made}
        verdicts = {job_id: forecast(action, states.get(job_id)) for job_id in asked}
        verdicts |= {job_id: "retried before" for job_id in copies if verdicts[job_id] == action.usual}
        counts.update(verdicts.values())
    return _changed(action, counts, verdicts, copies)


def forecast(action: Action, state: State | None) -> str:
    """The verdict for a job in that state, if nothing comes between; None: there is no such job."""
    if state is None:
        return "unknown"
    if state not in action.possible:
        return "finished" if state.is_final else "live"
    if state is State.RUNNING:
        return "requested" if action is CANCEL else "running"
    return action.usual


def change(
    action: Action, which: JobFilter | Iterable[int], parameters: Mapping[str, Any] | None = None
) -> Steps[Changed]:
    """Do it to the jobs with these ids, or to all that match, and say what was left out and why."""
    counts: Counter[str] = Counter()
    verdicts: dict[int, str] = {}
    copies: dict[int, int] = {}
    if action is CANCEL:
        yield Step(_ENSURE_PARTITIONS, {"days": 1})
    if isinstance(which, JobFilter):
        which = meant(action, which)
        scope = {"states": sorted(which.states), "queue": which.queue}
        # When they finished bounds the days that are opened.
        cursor: int | None = None
        while True:
            found = yield from page(which, limit=PORTION, cursor=cursor)
            ends = [job.finished_at for job in found.jobs if job.finished_at is not None]
            days = {"first": min(ends, default=None), "last": max(ends, default=None)}
            ids = [job.id for job in found.jobs]
            answers = yield from _portion(action, ids, {**scope, **days, **(parameters or {})})
            counts.update(verdict for _, verdict, _ in answers)
            cursor = found.cursor
            if cursor is None:
                break
    else:
        scope = {"states": sorted(action.possible), "queue": None, "first": None, "last": None}
        for ids in _portions(which):
            answers = yield from _portion(action, ids, {**scope, **(parameters or {})})
            counts.update(verdict for _, verdict, _ in answers)
            verdicts |= {job_id: verdict for job_id, verdict, _ in answers}
            copies |= {job_id: other for job_id, _, other in answers if other is not None}
    return _changed(action, counts, verdicts, copies)


def _changed(
    action: Action, counts: Counter[str], verdicts: dict[int, str], copies: dict[int, int] | None = None
) -> Changed:
    done = {action.usual, "requested"}
    return Changed(
        done=sum(number for verdict, number in counts.items() if verdict in done),
        skipped={verdict: number for verdict, number in sorted(counts.items()) if verdict not in done},
        verdicts=dict(sorted(verdicts.items())),
        copies=copies or {},
    )


def _portion(
    action: Action, ids: Collection[int], parameters: Mapping[str, Any]
) -> Steps[list[tuple[int, str, int | None]]]:
    """(id, verdict, copy) of each; "locked" only once it has stayed so for all tries."""
    answers: list[tuple[int, str, int | None]] = []
    left = list(ids)
    pause = _FIRST_PAUSE
    for turn in range(_TRIES):
        if not left:
            break
        if turn:
            yield Pause(pause)
            pause *= 2
        first = _LOCK_RETRIES if action is RETRY else None
        rows = yield Step(action.query, {**parameters, "ids": left}, first=first)
        is_last = turn == _TRIES - 1
        answers += [(row[0], row[1], row[2]) for row in rows if is_last or row[1] != "locked"]
        left = [row[0] for row in rows if row[1] == "locked"]
    return answers


def _portions(ids: Iterable[int]) -> Iterator[list[int]]:
    each = iter(sorted(set(ids)))
    while portion := list(islice(each, PORTION)):
        yield portion


def reschedule_parameters(at: datetime | None, delay: float | None) -> dict[str, Any]:
    """What reschedule_jobs.sql needs: an instant, or seconds from now."""
    return {"at": at, "delay": delay}
