"""What the demo found, out of its finished jobs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from tasuki_mp.demo.analysis import TOP, FileReport, Function
from tasuki_mp.demo.batch import FinishedJob

COMPLETED: Final = "completed"


class Found(msgspec.Struct, frozen=True):
    """What all files together hold."""

    files: int
    lines: int
    tokens: int
    functions: int
    complexity: int
    most_complex: list[tuple[Function, str]]
    """The `TOP` most complex functions with their file."""
    failed: list[FinishedJob]


class Pace(msgspec.Struct, frozen=True):
    """How fast the jobs of one run went. `seconds` lie between the first job's start and the last one's finish."""

    jobs: int
    seconds: float
    cpu_seconds: float
    supervisors: int

    @property
    def jobs_per_second(self) -> float:
        return self.jobs / self.seconds if self.seconds > 0 else 0.0


def found(jobs: Sequence[FinishedJob]) -> Found:
    """Totals over the jobs that completed, and those that did not."""
    reports = [(job.report, job.path) for job in jobs if job.report is not None]
    functions = [(function, path) for report, path in reports for function in report.most_complex]
    functions.sort(key=lambda item: (-item[0].complexity, item[1], item[0].line))
    return Found(
        files=len(jobs),
        lines=_total(reports, "lines"),
        tokens=_total(reports, "tokens"),
        functions=_total(reports, "functions"),
        complexity=_total(reports, "complexity"),
        most_complex=functions[:TOP],
        failed=sorted((job for job in jobs if job.status != COMPLETED), key=lambda job: job.path),
    )


def _total(reports: Sequence[tuple[FileReport, str]], field: str) -> int:
    return sum(getattr(report, field) for report, _ in reports)


def pace(jobs: Sequence[FinishedJob]) -> Pace | None:
    """How fast these jobs went; None when none of them was ever started."""
    starts: list[datetime] = [job.started_at for job in jobs if job.started_at is not None]
    if not starts:
        return None
    return Pace(
        jobs=len(jobs),
        seconds=(max(job.finished_at for job in jobs) - min(starts)).total_seconds(),
        cpu_seconds=sum(job.cpu_seconds or 0.0 for job in jobs),
        supervisors=len({job.owner for job in jobs}),
    )
