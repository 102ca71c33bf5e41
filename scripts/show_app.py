"""The application of `scripts.show`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from scripts.harness.journal import Journal
from tasuki_mp import Backoff, Context, Tasuki

app = Tasuki()


@app.resource
def journal() -> Iterator[Journal]:
    opened = Journal()
    yield opened
    opened.close()


@app.handler
def step(ms: float, journal: Journal, ctx: Context) -> None:
    """Works that long and is done."""
    with journal.execution(ctx):
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            pass


@app.handler(backoff=Backoff(factor=0.2, power=1.0))
def pill(journal: Journal, ctx: Context) -> None:
    """Kills its own process."""
    with journal.execution(ctx):
        os.kill(os.getpid(), signal.SIGSEGV)
        signal.pause()


@app.handler
def hog(journal: Journal, ctx: Context) -> int:
    """Burns CPU in C for hours, and never lets go of the interpreter's lock."""
    with journal.execution(ctx):
        return sum(range(10**13))
