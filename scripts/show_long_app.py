"""The application of `scripts.show long`: one job that needs much CPU time, and leaves a checkpoint after each piece."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from tasuki_mp import Backoff, Context, Snooze, Tasuki

app = Tasuki()

PIECE: Final = 0.25
"""Seconds of CPU time between two checkpoints."""
MEMORY: Final = "256MiB"
_GULP: Final = 16 * 1024 * 1024
_MOST: Final = 1024 * 1024 * 1024


@app.handler(max_attempts=20, max_crashes=20, backoff=Backoff(factor=0.1, power=1.0), memory=MEMORY)
def grind(seconds: float, folder: Path, ctx: Context) -> float:
    """Use that much CPU time in all attempts together. A file `leak` in the folder makes it take memory without end.

    Writes down in the folder what it begins with and how far it has come, with the CPU time of this attempt.
    """
    done = float((ctx.restored or {"done": 0.0})["done"])
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    began = time.process_time()

    def note(what: str) -> None:
        cpu = time.process_time() - began
        facts = {"what": what, "lease_no": ctx.lease_no, "attempt": ctx.attempt, "pid": os.getpid(), "done": done}
        os.write(notes, json.dumps({**facts, "cpu": cpu, "at": time.time()}).encode() + b"\n")

    note("begin")
    leaked: list[Any] = []
    try:
        while done < seconds:
            until = time.process_time() + PIECE
            while time.process_time() < until:
                sum(range(10_000))
            done += PIECE
            ctx.checkpoint({"done": done})
            ctx.progress(min(1.0, done / seconds), f"{done:.1f} of {seconds:.0f} s")
            note("piece")
            if ctx.should_stop:
                return Snooze(0)  # type: ignore[return-value]  # a handler may always ask for that
            if (folder / "leak").exists():
                (folder / "leak").unlink()
                note("leak")
                while len(leaked) * _GULP < _MOST:
                    leaked.append(bytearray(_GULP))
                    leaked[-1][::4096] = b"x" * (_GULP // 4096)
                    note("gulp")
                raise MemoryError("nobody stopped it")
    finally:
        os.close(notes)
    return done
