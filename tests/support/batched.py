"""An application whose jobs belong together: batches, maps, limits."""

from __future__ import annotations

import os
from pathlib import Path

from tasuki_mp import Backoff, Tasuki

app = Tasuki()


@app.handler(queue="maps")
def square(n: int) -> int:
    """Nothing but arithmetic."""
    return n * n


@app.handler(queue="maps", max_attempts=1)
def picky(n: int) -> int:
    """Fails for 13, unless a file says that it may not."""
    if n == 13 and not Path(os.environ["MAP_LUCK"]).exists():
        raise ValueError("thirteen")
    return n


@app.handler(queue="limited", backoff=Backoff(factor=0))
def alone(folder: str, tenant: str) -> None:
    """Fails if another of its tenant, or more than two others, run at the same time."""
    mine = Path(folder, tenant)
    mine.touch(exist_ok=False)
    try:
        if len(list(Path(folder).iterdir())) > 3:
            raise RuntimeError("too many at a time")
    finally:
        mine.unlink()


@app.handler(queue="maps")
def note(path: str) -> None:
    """Append a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("noted\n")


@app.handler(queue="maps")
def fat(n: int) -> str:
    """Three thousand characters."""
    return f"{n}".ljust(3000)
