"""What handlers note about their own executions: one file that all children append to, so no database is needed.

What it says about an execution is true whatever was restarted, cut off or killed meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tasuki_mp import Context

PATH_VARIABLE: Final = "SCRIPT_JOURNAL"
"""Environment variable: the journal's path."""
SUPERVISOR_VARIABLE: Final = "SCRIPT_SUPERVISOR"
"""Environment variable: what the script calls this supervisor."""


def environment(path: Path, supervisor: str) -> Mapping[str, str]:
    """What a supervisor's environment must say for its handlers to write to this journal."""
    return {PATH_VARIABLE: str(path), SUPERVISOR_VARIABLE: supervisor}


class Journal:
    """For handlers. A line is written by one call, so lines of different processes do not mix."""

    def __init__(self) -> None:
        self._fd = os.open(os.environ[PATH_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._who = f"{os.environ[SUPERVISOR_VARIABLE]}\t{os.getpid()}"

    @contextmanager
    def execution(self, ctx: Context) -> Iterator[None]:
        """Note that this attempt's handler begins, and that it ends, if it does."""
        self._note("begin", ctx)
        try:
            yield
        finally:
            self._note("end", ctx)

    def _note(self, what: str, ctx: Context) -> None:
        line = f"{what}\t{ctx.job_id}\t{ctx.lease_no}\t{ctx.attempt}\t{self._who}\t{time.time():.6f}\n"
        os.write(self._fd, line.encode())

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Execution:
    """One run of a handler, as it noted it. Times are those of the wall clock; `ended` is None if it never did."""

    job: int
    lease_no: int
    attempt: int
    supervisor: str
    pid: int
    began: float
    ended: float | None = None


def read(path: Path) -> list[Execution]:
    """Every execution so far, those that have ended first."""
    begun: dict[tuple[str, ...], Execution] = {}
    done: list[Execution] = []
    if not path.exists():
        return []
    with path.open(encoding="ascii") as lines:
        for line in lines:
            what, job, lease_no, attempt, supervisor, pid, at = line.rstrip("\n").split("\t")
            key = (job, lease_no, supervisor, pid)
            if what == "end":
                done.append(replace(begun.pop(key), ended=float(at)))
                continue
            if key in begun:  # the same process ran the same lease again: two executions, which is what it is
                done.append(begun.pop(key))
            begun[key] = Execution(int(job), int(lease_no), int(attempt), supervisor, int(pid), float(at))
    return [*done, *begun.values()]
