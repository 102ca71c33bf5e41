"""An application whose handlers go on for ever, each in a way of its own: `tests.support.stubborn:app`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tasuki_mp import Backoff, Canceled, Context, Retry, SoftTimeout, Tasuki

app = Tasuki()
AT_ONCE = Backoff(factor=0)
PATIENT = 600.0


def spin() -> None:
    """In Python, without a pause."""
    while True:
        pass


def shrug_off() -> None:
    """As a loop does that skips the rows which fail."""
    while True:
        try:
            time.sleep(0.001)  # noqa: TID251 -- what handlers do
        except Exception:  # noqa: BLE001, S112
            continue


def burn() -> None:
    """In C, holding the interpreter."""
    sum(range(10**13))


@app.handler(max_attempts=1, backoff=AT_ONCE, cancel_grace=PATIENT)
def go_on(how: str, ctx: Context) -> Any:
    """Go on for ever, until something is raised."""
    match how:
        case "spin":
            spin()
        case "shrug off":
            shrug_off()
        case "burn":
            burn()
        case "sleep":
            time.sleep(PATIENT)  # noqa: TID251 -- what handlers do
        case "loop":
            asyncio.run(asyncio.sleep(PATIENT))
        case "watch":
            while not ctx.should_stop:
                pass
            raise Canceled
        case "tidy up":
            try:
                spin()
            except (SoftTimeout, Canceled) as interrupt:
                return {"ended by": type(interrupt).__name__, "reason": ctx.stop_reason}
        case "fail":
            try:
                spin()
            except (SoftTimeout, Canceled) as interrupt:
                raise RuntimeError("half done") from interrupt
    raise AssertionError(how)


@app.handler(max_attempts=1, cancel_grace=PATIENT)
async def go_on_async(how: str) -> Any:
    """The same on an event loop."""
    match how:
        case "await":
            await asyncio.sleep(PATIENT)
        case "spin":
            spin()
        case "gather":
            await asyncio.gather(asyncio.sleep(PATIENT), asyncio.sleep(PATIENT))
        case "spin in a task":
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(lambda: None))
                group.create_task(_spin())
        case "tidy up":
            try:
                await asyncio.sleep(PATIENT)
            except (SoftTimeout, Canceled) as interrupt:
                await asyncio.sleep(0)
                return {"ended by": type(interrupt).__name__}
    raise AssertionError(how)


async def _spin() -> None:
    spin()


@app.handler(max_attempts=1, cancel_grace=0.2)
def withstand(how: str) -> None:
    """Go on though it was asked not to; it has a fifth of a second."""
    if how == "burn":
        burn()
    while True:
        try:
            spin()
        except BaseException:  # noqa: BLE001, S112
            continue


@app.handler(max_attempts=1, cancel_grace=0)
def unasked(how: str) -> None:
    """Has nothing to say in a cancel."""
    withstand.function(how)


@app.handler(backoff=AT_ONCE, timeout=0.2, on_timeout=Retry(timeout="x1.5"))
def persist() -> None:
    """Need more time at each attempt."""
    spin()


@app.handler
def quick(text: str = "") -> str:
    """Return at once."""
    return text


@app.handler
def work(turns: int) -> int:
    """Some microseconds of Python."""
    total = 0
    for turn in range(turns):
        total += turn
    return turns
