"""Run jobs here and now, one after the other, with the statements that supervisors use: no process, no thread, no chance.

Everything happens on the caller's connection and in its transaction, which is neither committed nor rolled back here.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, Final, Literal
from uuid import UUID, uuid4

import msgspec
import psycopg
from psycopg.pq import TransactionStatus

from tasuki_mp import handlers, payload, sql
from tasuki_mp.child import answer
from tasuki_mp.child.calling import runnable
from tasuki_mp.child.context import Context
from tasuki_mp.child.each import call_each, is_list
from tasuki_mp.child.resources import Resources
from tasuki_mp.child.scratch import Scratch
from tasuki_mp.errors import CheckpointError, ConflictError
from tasuki_mp.followups import FollowUps, Spool
from tasuki_mp.handlers import Application, Handler
from tasuki_mp.job import JobRow, Lease
from tasuki_mp.limits import NONE, Limits, Reach, read_limits
from tasuki_mp.outcome import AskedSnooze, Outcome, Returned, settle
from tasuki_mp.payload import FlawError
from tasuki_mp.statefile import CHECKPOINT_LIMIT
from tasuki_mp.store import batches, bulk, schedules, upkeep, work
from tasuki_mp.store.bulk import Intake
from tasuki_mp.store.steps import Step, Steps, drive

MOST_RUNS: Final = 1000
_LEASE_FOR: Final = 86_400.0

_CLOCK: Final = sql.query("clock")
_NEXT: Final = sql.query("next_job")
_PUT_OFF: Final = sql.query("put_off")

Connection = psycopg.Connection[Any]
Decision = Literal["completed", "failed", "canceled", "retry", "snooze", "release", "gone"]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one job, and what came of it."""

    job_id: int
    handler: str
    queue: str
    payload: Any
    attempt: int
    decision: Decision
    """What became of the job; `gone`: its own handler, or the test, removed it meanwhile."""
    delay: float
    """Seconds until the next attempt, of a retry or snooze."""
    value: Any
    """What the handler returned, as it was."""
    exception: BaseException | None


def run_due(
    app: Application,
    conn: Connection,
    *,
    now: datetime | None = None,
    resources: Mapping[str, Any] | None = None,
    raises: bool = False,
    limit: int = MOST_RUNS,
) -> list[Run]:
    """Run every job of the application's handlers that is due, and those that become due by that, until none is.

    In the order of priority, due time and id; `now` is what time it is instead of the database's, and goes on from there.
    `resources` stand in for the application's own, by name. An exception is recorded as in production, retries included;
    with `raises=True` it is raised as well. Raises RuntimeError when jobs go on for more than `limit` runs.
    """
    return list(_runs(app, conn, now=now, resources=resources, raises=raises, limit=limit, is_patient=False))


def drain(
    app: Application,
    conn: Connection,
    *,
    now: datetime | None = None,
    resources: Mapping[str, Any] | None = None,
    raises: bool = False,
    limit: int = MOST_RUNS,
) -> list[Run]:
    """The same until no job is left, whenever it is due: time jumps to the next one when none is due any more."""
    return list(_runs(app, conn, now=now, resources=resources, raises=raises, limit=limit, is_patient=True))


def declare(app: Application, conn: Connection) -> None:
    """Make the application's handlers and schedules known to the database, as a supervisor's start does."""
    app.registry.check()
    infos = [handler.info for handler in app.registry.handlers.values()]
    drive(conn, _step(Step(upkeep.REGISTER_HANDLERS, upkeep.handler_parameters(infos, app.version))))
    if found := app.registry.schedule_infos():
        parameters = schedules.register_parameters(found, source="app", version=app.version)
        drive(conn, _step(Step(schedules.REGISTER, parameters)))


def _step(step: Step) -> Steps[None]:
    yield step


def _runs(
    app: Application,
    conn: Connection,
    *,
    now: datetime | None,
    resources: Mapping[str, Any] | None,
    raises: bool,
    limit: int,
    is_patient: bool,
) -> Iterator[Run]:
    declare(app, conn)
    owner = uuid4()
    with closing(_Resources(app, resources or {})) as built, tempfile.TemporaryDirectory(prefix="tasuki-mp-") as folder:
        count = 0
        ahead = timedelta() if now is None else now - drive(conn, _clock())
        while True:
            lease, ahead = drive(conn, _next(app, owner, ahead, is_patient=is_patient))
            if lease is None:
                return
            count += 1
            if count > limit:
                raise RuntimeError(f"more than {limit} runs, the last of {lease.handler!r}: do its jobs never end?")
            run = _run(app, conn, owner, lease, built, Scratch(folder), ahead)
            yield run
            if raises and run.exception is not None:
                raise run.exception


def _clock() -> Steps[datetime]:
    ((now,),) = yield Step(_CLOCK)
    instant: datetime = now
    return instant


def _next(
    app: Application, owner: UUID, ahead: timedelta, *, is_patient: bool
) -> Steps[tuple[Lease | None, timedelta]]:
    """The next job under a lease, and how much later than on the database's clock it is by then."""
    names = tuple(app.registry.handlers)
    now = (yield from _clock()) + ahead
    rows = yield Step(_NEXT, {"handlers": list(names), "now": now, "is_patient": is_patient})
    if not rows:
        return None, ahead
    queue, priority, is_limited, due = rows[0]
    if due > now:
        now, ahead = due, ahead + (due - now)  # where time has jumped, it does not go back
    if is_limited:
        query = work.LEASE_LIMITED
        place: dict[str, Any] = {"queue": queue, "owner": owner, "lease_for": _LEASE_FOR, "most": 1, "now": now}
        parameters = {**Reach(names).parameters, **place}
    else:
        query = work.LEASE
        entry = work.LeaseEntry(queue=queue, priority=priority, limit=1)
        parameters = work.lease_parameters(owner, _LEASE_FOR, [entry], Reach(names), 1, now)
    leased = yield Step(query, parameters)
    return (Lease(*leased[0]) if leased else None), ahead


def _run(
    app: Application,
    conn: Connection,
    owner: UUID,
    lease: Lease,
    resources: _Resources,
    scratch: Scratch,
    ahead: timedelta,
) -> Run:
    handler = app.registry.handlers[lease.handler]
    limits = read_limits(lease.limits) if lease.limits is not None else NONE
    board = _Board()
    followups = FollowUps()
    rows: list[JobRow] = []
    started = perf_counter()
    value, exception = None, None
    outcome: Outcome
    try:
        with _savepoint(conn):
            context = Context(
                job_id=lease.id,
                lease_no=lease.lease_no,
                handler=lease.handler,
                queue=lease.queue,
                attempt=lease.attempt,
                max_attempts=lease.max_attempts,
                board=board,
                checkpoint=lease.checkpoint,
                scratch=scratch,
                followups=followups,
                cpus=limits.over(handler.info.policy.limits).cpus or 1,
            )
            handlers.running_job = f"{lease.handler} (job {lease.id})"
            value = _call(handler, lease.payload, context, resources, followups)
            outcome = answer.to_value(value, limit=app.max_result)
            if isinstance(outcome, Returned | AskedSnooze):
                rows = _later(_rows(followups), ahead)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a handler may raise anything; Ctrl-C and pytest's own go on
        exception = error
        outcome = answer.to_error(error, handler, lease.attempt)
    finally:
        handlers.running_job = None
        scratch.clear()
        followups.close()
    ran_for = perf_counter() - started
    checkpoint = None if isinstance(outcome, Returned) else board.left

    def finish(outcome: Outcome, rows: list[JobRow], exception: BaseException | None) -> Run:
        plain = [row for row in rows if row.is_plain]
        steps = _finish(owner, lease, handler, limits, outcome, ran_for, checkpoint, value, exception, plain)
        run = drive(conn, steps)
        if run.decision in {"retry", "snooze"} and ahead:
            drive(conn, _step(Step(_PUT_OFF, {"id": lease.id, "ahead": ahead})))
        intake = Intake(row for row in rows if not row.is_plain and run.decision in {"completed", "snooze"})
        if intake:
            bulk.insert(conn, intake, is_ours=False)
        return run

    try:
        with conn.transaction():
            return finish(outcome, rows, exception)
    except ConflictError as conflict:
        return finish(answer.to_error(conflict, handler, lease.max_attempts), [], conflict)


def _rows(followups: FollowUps) -> list[JobRow]:
    rows, spool = followups.take()
    if spool is None:
        return rows
    with closing(Spool(os.dup(spool))) as written:
        return list(written.rows())


def _later(rows: list[JobRow], ahead: timedelta) -> list[JobRow]:
    """Jobs that are put off count from the test's clock: by so much later."""
    seconds = ahead.total_seconds()
    return [msgspec.structs.replace(row, delay=max(0.0, row.delay + seconds)) if row.delay else row for row in rows]


def _finish(
    owner: UUID,
    lease: Lease,
    handler: Handler[..., Any],
    limits: Limits,
    outcome: Outcome,
    ran_for: float,
    checkpoint: str | None,
    value: Any,
    exception: BaseException | None,
    followups: list[JobRow],
) -> Steps[Run]:
    settled = settle(
        outcome,
        handler.info.policy,
        attempt=lease.attempt,
        max_attempts=lease.max_attempts,
        crashes=lease.crashes,
        interruptions=lease.interruptions,
        limits=limits,
        random=lambda: 0.5,  # the middle of what the backoff may be
    )
    left = checkpoint if checkpoint is not None or lease.checkpoint is None else ""
    item = work.FinishItem(
        id=lease.id,
        lease_no=lease.lease_no,
        settled=settled,
        ran_for=ran_for,
        checkpoint=left,
        followups=followups,
    )
    rows = yield Step(work.FINISH, work.finish_parameters(owner, [item], notify=False))
    _, _, kind, is_applied, batch_id, _ = rows[0]
    if batch_id is not None:
        yield Step(batches.CLOSE, {"ids": [batch_id]})
    return Run(
        job_id=lease.id,
        handler=lease.handler,
        queue=lease.queue,
        payload=msgspec.json.decode(lease.payload),
        attempt=lease.attempt,
        decision=kind if is_applied else "gone",
        delay=settled.delay,
        value=value,
        exception=exception,
    )


def _call(handler: Handler[..., Any], given: str, context: Context, resources: _Resources, followups: FollowUps) -> Any:
    injected: dict[str, Any] = {}
    for parameter, resource in handler.injections:
        injected[parameter] = context if resource is None else resources.get(resource)
    function, is_async = runnable(handler, followups)
    call = partial(_call_async if is_async else _call_plain, function)
    if is_list(given):
        return call_each(handler, given, injected, call)
    return call({**handler.decode(given), **injected})


def _call_plain(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return function(**arguments)


def _call_async(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return asyncio.run(function(**arguments))


def _savepoint(conn: Connection) -> AbstractContextManager[object]:
    """What a handler that raises has written on this very connection is taken back, and the transaction goes on."""
    is_within = not conn.autocommit or conn.info.transaction_status != TransactionStatus.IDLE
    return conn.transaction() if is_within else nullcontext()


class _Resources:
    """The application's resources, built when they are first asked for, and the ones that stand in for them."""

    def __init__(self, app: Application, instead: Mapping[str, Any]) -> None:
        unknown = sorted(instead.keys() - app.registry.resources.keys())
        if unknown:
            raise ValueError(f"the application has no resource named {', '.join(unknown)}")
        self._built = Resources(app.registry.resources, instead)

    def get(self, name: str) -> Any:
        self._built.build(name)
        return self._built.get(name)

    def close(self) -> None:
        self._built.close()


class _Board:
    """Takes what the job says of itself; progress is checked and forgotten, a checkpoint is left for the next attempt."""

    def __init__(self) -> None:
        self.left: str | None = None

    def progress(self, _key: object, fraction: float | None, _note: str) -> None:
        if fraction is not None and not -1e-6 <= fraction <= 1 + 1e-6:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")

    def checkpoint(self, _key: object, state: Any, *, wait: bool) -> None:  # noqa: ARG002  as the real one has it
        try:
            self.left = payload.encode(state, limit=CHECKPOINT_LIMIT).decode()
        except FlawError as flaw:
            raise CheckpointError(f"this state can't be kept: at {flaw.path}: {flaw.reason}") from flaw
