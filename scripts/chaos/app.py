"""The application of a chaos run: jobs of every shape, each of which notes its beginning and end in a journal."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

from scripts.harness.journal import Journal
from tasuki_mp import Backoff, Context, Retry, Snooze, Tasuki

QUICK = Backoff(factor=0.05, power=1.0, cap=0.5)
MANY = 40
"""Attempts that no number of injected faults should use up."""

app = Tasuki()


@app.resource
def journal() -> Iterator[Journal]:
    opened = Journal()
    yield opened
    opened.close()


def _spin(ms: float) -> int:
    end = time.perf_counter() + ms / 1000
    count = 0
    while time.perf_counter() < end:
        count += 1
    return count


@app.handler(queue="chaos-a", max_attempts=MANY, backoff=QUICK)
def noop(journal: Journal, ctx: Context) -> None:
    with journal.execution(ctx):
        pass


@app.handler(queue="chaos-a", max_attempts=MANY, backoff=QUICK)
def burn(ms: float, journal: Journal, ctx: Context) -> int:
    with journal.execution(ctx):
        return _spin(ms)


@app.handler(queue="chaos-b", max_attempts=MANY, backoff=QUICK)
def flaky(until: int, journal: Journal, ctx: Context) -> str:
    """Fails until that attempt."""
    with journal.execution(ctx):
        if ctx.attempt < until:
            raise ValueError(f"not before attempt {until}")
        return "at last"


@app.handler(queue="chaos-b", max_attempts=3, backoff=QUICK)
def hopeless(journal: Journal, ctx: Context) -> None:
    with journal.execution(ctx):
        raise RuntimeError("never works")


@app.handler(queue="chaos-b", max_attempts=MANY, backoff=QUICK)
def again(until: int, journal: Journal, ctx: Context) -> Retry | None:
    """Asks for a retry until that attempt."""
    with journal.execution(ctx):
        return Retry(after=0.05) if ctx.attempt < until else None


@app.handler(queue="chaos-b", max_attempts=MANY, backoff=QUICK)
def later(leases: int, journal: Journal, ctx: Context) -> Snooze | None:
    """Snoozes until it was leased that often."""
    with journal.execution(ctx):
        return Snooze(0.1) if ctx.lease_no < leases else None


@app.handler(queue="chaos-b", max_attempts=MANY, backoff=QUICK)
def pill(signo: int, journal: Journal, ctx: Context) -> None:
    """Kills its own process, every time."""
    with journal.execution(ctx):
        os.kill(os.getpid(), signal.Signals(signo))
        threading.Event().wait()


@app.handler(queue="chaos-a", max_attempts=1)
def once(ms: float, journal: Journal, ctx: Context) -> None:
    """Must never be started twice."""
    with journal.execution(ctx):
        _spin(ms)


@app.handler(queue="chaos-b", max_attempts=MANY, backoff=QUICK)
def linger(seconds: float, journal: Journal, ctx: Context) -> None:
    """Runs long enough to be canceled, frozen or killed meanwhile; sometimes longer than a lease."""
    with journal.execution(ctx):
        threading.Event().wait(seconds)
