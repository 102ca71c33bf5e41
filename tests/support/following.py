"""An application whose handlers ask for follow-up jobs, and end in every way: `tests.support.following:app`."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

from tasuki_mp import Backoff, Cancel, Context, FailedJob, Job, Retry, Snooze, Tasuki
from tests.support.door import hold

app = Tasuki()
AT_ONCE = Backoff(factor=0)


@app.handler(queue="leaves", priority=3)
def leaf(number: int, text: str = "") -> int:
    """One of many."""
    return number


@app.handler(max_attempts=2, backoff=AT_ONCE)
def ask(count: int, end: str, ctx: Context) -> Any:
    """Ask for that many follow-ups in the first run, and end like that."""
    if ctx.lease_no > 1:
        return "again"
    ctx.enqueue_many(leaf.job(number) for number in range(count))
    match end:
        case "return":
            return count
        case "snooze":
            return Snooze(0)
        case "retry":
            return Retry(0)
        case "cancel":
            return Cancel("enough")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
    raise ValueError(end)


@app.handler
def delayed(ctx: Context) -> None:
    """Follow-ups with what jobs can have."""
    ctx.enqueue(leaf.job(1).after(hours=1).priority(0).key("tenant"))
    ctx.enqueue(leaf.job(2).limits(cpus=3))


@app.handler
def spread(count: int, size: int = 0, door: str = "") -> Iterator[Job]:
    """Yield that many jobs; with a door, come to it after half of them."""
    for number in range(count):
        if door and number == count // 2:
            _visit(door)
        yield leaf.job(number, "x" * size)


@app.handler
async def drip(count: int) -> AsyncIterator[Job]:
    """The same, asynchronously."""
    for number in range(count):
        yield leaf.job(number)


@app.handler(max_attempts=1)
def stumble() -> Iterator[Job]:
    """Yield jobs, and then what is none."""
    yield leaf.job(1)
    yield leaf.job(2).row  # type: ignore[misc]  # as somebody without a type checker might


@app.handler(max_attempts=1)
def chain(left: int, ctx: Context) -> None:
    """Enqueue itself under the same unique key."""
    if left:
        ctx.enqueue(chain.job(left - 1).unique("chain"))


@app.handler(max_attempts=1)
def insist(ctx: Context) -> None:
    """Ask to hear of a unique key that is taken."""
    ctx.enqueue(leaf.job(0))
    ctx.enqueue(leaf.job(1).unique("taken", scope=timedelta(hours=1), on_conflict="raise"))


@app.handler
def alarm(failed: FailedJob) -> str:
    """What follows on a failure."""
    return f"{failed.id} {failed.handler} {failed.error['kind']} {failed.error['type']}"


@app.handler(max_attempts=1, on_failed=alarm)
def fragile(how: str, door: str = "") -> None:
    """Fail for good."""
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    if how == "visit":
        _visit(door)
    raise RuntimeError(how)


def _visit(door: str) -> None:
    hold.function(door, Context(job_id=0, lease_no=0, handler="", queue="", attempt=1, max_attempts=1))
