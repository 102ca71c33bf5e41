"""The queue as it should be: a few dozen lines without a database, for the tests to compare Postgres with.

Time is a number that only `advance` moves. What happens at one time is ordered by `_tick`, as by the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tasuki_mp.outcome import SettledKind

LEASE_FOR = 6_000.0
"""Seconds: so long that the real time a test takes means nothing."""
FINAL = frozenset({"completed", "failed", "canceled"})
REFUNDED = frozenset({"snooze", "release"})

Key = tuple[int, int]
"""A lease: job id and lease_no."""


@dataclass
class Job:
    """One job. `written` is what finish has put on record, by owner and lease_no."""

    id: int
    priority: int
    max_attempts: int
    due: tuple[float, int]
    status: str = "pending"
    attempt: int = 0
    crashes: int = 0
    lease_no: int = 0
    owner: int | None = None
    expires: float = 0.0
    is_cancel_requested: bool = False
    written: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        return self.status in {"pending", "running"}

    def is_leased_as(self, owner: int, lease_no: int) -> bool:
        return self.status == "running" and self.owner == owner and self.lease_no == lease_no


class Ledger:
    """All jobs, and the one paused flag of their queue."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.time = 0.0
        self.is_paused = False
        self._ticks = 0

    def enqueue(self, job_id: int, *, priority: int, max_attempts: int, delay: float) -> None:
        self.jobs[job_id] = Job(job_id, priority, max_attempts, self._tick(delay))

    def lease(self, owner: int, limit: int) -> list[Key]:
        if self.is_paused:
            return []
        waiting = [job for job in self.jobs.values() if job.status == "pending" and job.due[0] <= self.time]
        taken = sorted(waiting, key=lambda job: (job.priority, job.due))[:limit]
        for job in taken:
            job.status, job.owner, job.expires = "running", owner, self.time + LEASE_FOR
            job.lease_no += 1
            job.attempt += 1
        return [(job.id, job.lease_no) for job in taken]

    def beat(self, owner: int, keys: Iterable[Key]) -> dict[Key, str]:
        verdicts = {}
        for job_id, lease_no in keys:
            job = self.jobs[job_id]
            if job.is_leased_as(owner, lease_no):
                job.expires = self.time + LEASE_FOR
                verdicts[job_id, lease_no] = "cancel" if job.is_cancel_requested else "held"
            else:
                verdicts[job_id, lease_no] = "lost"
        return verdicts

    def finish(
        self, owner: int, key: Key, kind: SettledKind, *, delay: float = 0.0, is_crash: bool = False
    ) -> tuple[str, str]:
        job = self.jobs[key[0]]
        if not job.is_leased_as(owner, key[1]):
            known = job.written.get((owner, key[1]))
            return ("duplicate", known) if known else ("stale", kind)
        found = "canceled" if job.is_cancel_requested and kind not in FINAL else kind
        job.written[owner, key[1]] = found
        job.crashes += is_crash
        if found in FINAL:
            self._end(job, found)
        else:
            job.attempt -= found in REFUNDED
            if found != "release":
                job.due = self._tick(delay)
            self._wait(job)
        return "applied", found

    def cancel(self, job_id: int) -> str:
        job = self.jobs.get(job_id)
        if job is None:
            return "unknown"
        if not job.is_live:
            return "finished"
        if job.status == "running":
            job.is_cancel_requested = True
            return "requested"
        self._end(job, "canceled")
        return "canceled"

    def advance(self, seconds: float) -> None:
        self.time += seconds

    def rescue(self, owner: int, *, is_gone: bool) -> dict[int, str]:
        taken = {}
        for job in self._running(owner):
            if not is_gone and job.expires >= self.time:
                continue
            job.lease_no += 1
            if job.is_cancel_requested:
                self._end(job, "canceled")
            elif job.attempt >= job.max_attempts:
                self._end(job, "failed")
            else:
                job.due = self._tick(0.0)
                self._wait(job)
            taken[job.id] = job.status
        return taken

    def release_unknown(self, owner: int, known: Sequence[int]) -> int:
        lost = [job for job in self._running(owner) if job.id not in known]
        for job in lost:
            job.lease_no += 1
            if job.is_cancel_requested:
                self._end(job, "canceled")
            else:
                job.attempt -= 1
                self._wait(job)
        return len(lost)

    def _running(self, owner: int) -> list[Job]:
        return sorted(
            (job for job in self.jobs.values() if job.status == "running" and job.owner == owner),
            key=lambda job: job.id,
        )

    def _wait(self, job: Job) -> None:
        job.status, job.owner = "pending", None

    def _end(self, job: Job, status: str) -> None:
        job.status, job.owner = status, None

    def _tick(self, delay: float) -> tuple[float, int]:
        self._ticks += 1
        return self.time + delay, self._ticks
