"""What somebody asks of the supervisor that runs a job, and its answer: one row of `tasuki.command` for each question.

The row is gone once its answer was taken, or when whoever asked has given up; what a client left that died in between is
dropped by any supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.errors import CommandError, JobNotRunningError, NoAnswerError
from tasuki_mp.store import produce
from tasuki_mp.store.steps import Pause, Step, Steps

_ASK: Final = sql.query("ask_command")
_ASK_ALL: Final = sql.query("ask_supervisors")
_TAKE: Final = sql.query("take_reply")
_OPEN: Final = sql.query("open_commands")
_ANSWER: Final = sql.query("answer_command")
_FORGET: Final = sql.query("forget_commands")

AT_ONCE: Final = 100
FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25
DEFAULT_TIMEOUT: Final = 10.0
MOST_WAIT: Final = 30.0

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


class Command(msgspec.Struct, frozen=True):
    """A question about the running job of one lease."""

    id: int
    kind: str
    job_id: int
    lease_no: int
    args: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer: a value, or why there is none."""

    value: Any = None
    error: str = ""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running job is: `text` has the Python frames of every thread of its process, the innermost first."""

    text: str
    host: str
    pid: int
    slot: int
    ran_for: float
    """Seconds since its handler was entered."""

    def __str__(self) -> str:
        return self.text


class SlotView(msgspec.Struct, frozen=True, kw_only=True):
    """One slot as its supervisor sees it. Memory in bytes; `cpu` is the seconds of its child since that began."""

    slot: int
    pid: int | None = None
    job_id: int | None = None
    handler: str | None = None
    queue: str | None = None
    attempt: int | None = None
    ran_for: float | None = None
    waiting: int = 0
    """Jobs in its pipe behind the running one."""
    jobs_run: int = 0
    cpu: float | None = None
    private: int | None = None
    shared: int | None = None


class SupervisorView(msgspec.Struct, frozen=True, kw_only=True):
    """One supervisor's slots at an instant of its clock, in seconds."""

    at: float
    finished: int
    """Attempts that have ended here since it started."""
    slots: list[SlotView]


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A living supervisor, and its view; None if it has not answered in time."""

    owner: str
    host: str
    pid: int
    procs: int
    view: SupervisorView | None


class TailArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for of a job's output: from byte `start` on, or as much as is kept of it."""

    start: int = 0
    wait: Annotated[float, msgspec.Meta(ge=0, le=MOST_WAIT)] = 0.0
    """Seconds until which there may be something new."""


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of what a running job has written; `start` and `end` are bytes from the beginning of its attempt's."""

    lease_no: int
    start: int
    end: int
    text: str


def ask(kind: str, job_id: int, *, args: dict[str, Any] | None = None, timeout: float) -> Steps[Any]:
    """What the supervisor of that running job answers. Raises JobNotRunningError, NoAnswerError, CommandError.

    Each step must be a transaction of its own, or nobody else would see the question.
    """
    if not 0 < timeout <= 3600:
        raise ValueError(f"the timeout is more than 0 seconds and at most an hour, not {timeout!r}")
    asking = {"kind": kind, "id": job_id, "args": msgspec.json.encode(args or {}).decode(), "seconds": timeout}
    asked = yield Step(_ASK, asking)
    if not asked:
        state = yield Step(produce.STATUS, {"id": job_id})
        raise JobNotRunningError(job_id, state[0][0] if state else None)
    command, host, _ = asked[0]
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while True:
        is_last = time.monotonic() >= deadline
        replies = yield Step(_TAKE, {"id": command, "is_last": is_last})
        if replies and replies[0][0] is not None:
            reply = msgspec.json.decode(replies[0][0], type=Reply)
            if reply.error:
                raise CommandError(job_id, reply.error)
            return reply.value
        if is_last:
            raise NoAnswerError(job_id, host, timeout)
        yield Pause(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(LONGEST_PAUSE, pause * 1.5)


def stack(job_id: int, *, timeout: float = DEFAULT_TIMEOUT) -> Steps[Stack]:
    """The stack of that running job. Raises like `ask`."""
    value = yield from ask("stack", job_id, timeout=timeout)
    return msgspec.convert(value, Stack)


def overview(*, timeout: float = 1.0) -> Steps[list[Answered]]:
    """What every living supervisor is doing; those that don't answer in time come without a view."""
    rows = yield Step(_ASK_ALL, {"kind": "slots", "seconds": timeout})
    asked = {int(command): Answered(owner=o, host=h, pid=p, procs=n, view=None) for command, o, h, p, n, _ in rows}
    found: dict[int, Answered] = {}
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE
    while len(found) < len(asked):
        is_last = time.monotonic() >= deadline
        for command in asked.keys() - found.keys():
            replies = yield Step(_TAKE, {"id": command, "is_last": is_last})
            if replies and replies[0][0] is not None:
                reply = msgspec.json.decode(replies[0][0], type=Reply)
                view = None if reply.error else msgspec.convert(reply.value, SupervisorView)
                found[command] = msgspec.structs.replace(asked[command], view=view)
        if is_last:
            break
        if len(found) < len(asked):
            yield Pause(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(LONGEST_PAUSE, pause * 1.5)
    return [found.get(command, supervisor) for command, supervisor in asked.items()]


def tail(job_id: int, *, start: int = 0, wait: float = 0.0, timeout: float = DEFAULT_TIMEOUT) -> Steps[Tail]:
    """What that running job has written since `start`, as soon as there is something. Raises like `ask`."""
    args = msgspec.structs.asdict(TailArgs(start=start, wait=wait))
    value = yield from ask("logs", job_id, args=args, timeout=timeout + wait)
    return msgspec.convert(value, Tail)


# ── the supervisor's side ─────────────────────────────────────────────────────────────────────────────────────────────


async def open_commands(conn: AsyncConnection, owner: UUID, *, most: int = AT_ONCE) -> list[Command]:
    """What this supervisor is asked and has not answered yet."""
    cursor = await conn.execute(_OPEN, {"owner": owner, "most": most, "now": None})
    return [Command(*row) for row in await cursor.fetchall()]


async def answer(conn: AsyncConnection, replies: Sequence[tuple[int, Reply]]) -> None:
    """Answer commands, by their ids."""
    for command, reply in replies:
        await conn.execute(_ANSWER, {"id": command, "reply": msgspec.json.encode(reply).decode()})


async def forget(conn: AsyncConnection, *, most: int = 1000) -> int:
    """Drop what has expired; returns how many."""
    return (await conn.execute(_FORGET, {"most": most, "now": None})).rowcount
