"""The host's memory: how much of it this supervisor with everything below it takes, and who has to go before it is full.

Fed by the sampler. Resident sizes count shared pages several times, so near the limit the exact share of every process is
read in a thread, and the quick figures are corrected by what was found. Cgroups with a limit, and the machine, are looked at
too: what kills there counts more than what processes hold. From 80 % on idle children that have grown are replaced, at 90 %
nothing is started beside what runs, at 95 % a job is given back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple

from tasuki_mp import logs
from tasuki_mp.job import Lease
from tasuki_mp.limits import size
from tasuki_mp.memory import Ceiling
from tasuki_mp.outcome import ErrorInfo, ErrorKind, Interrupted, Killed, Outcome
from tasuki_mp.supervisor.child import Key
from tasuki_mp.supervisor.probe import Probe
from tasuki_mp.supervisor.watch import Watch

NEAR: Final = 0.80
"""From this share of the limit on the exact figure is asked for."""
FULL: Final = 0.90
OVER: Final = 0.95
OURS: Final = 0.5
"""A cgroup or machine that fills up is our business only if so much of what is used there is ours."""
OWN_EVERY: Final = 1.0
EXACT_EVERY: Final = 0.5
EXACT_SHARE: Final = 50
"""The exact figure is asked for no sooner than so many times its own duration after the last."""
EXACT_FOR: Final = 10.0
"""Seconds for which that is believed."""

Stop = Callable[[Key, Outcome], None]
Run = Callable[[Coroutine[Any, Any, None]], None]


class Weight(NamedTuple):
    """A child, and the job that runs in it."""

    watch: Watch
    job: Lease | None


class Host:
    """`free` bytes are left below the limit. `is_near`: who holds memory for nothing should let go of it; `is_full`: nothing
    more should be started beside what runs."""

    def __init__(self, probe: Probe, *, limit: int, ceilings: Iterable[Ceiling], stop: Stop, run: Run) -> None:
        self.limit = limit
        self.used = 0
        self.free = limit
        self.is_near = False
        self.is_full = False
        self.forkserver = 0
        """Its pid; the preloaded application is counted there."""
        self._probe = probe
        self._ceilings = list(ceilings)
        self._stop = stop
        self._run = run
        self._own = 0
        self._own_at = 0.0
        self._fullest = 0.0
        """Of the ceilings: how full the fullest is, 1 being full."""
        self._room = limit
        """Of the ceilings: bytes left below the nearest."""
        self._shared = 0
        """Of our own: what the forkserver and its children have together, and is counted there."""
        self._exact_at = float("-inf")
        self._next_exact = 0.0
        self._is_weighing = False
        self._victim: Key | None = None

    def weigh(self, weights: list[Weight], now: float) -> None:
        """Take in what the sampler has just seen of every child, while something runs."""
        if now - self._own_at >= OWN_EVERY:
            self._own_at = now
            self._own = sum(self._probe.memory(pid) or 0 for pid in self._others())
            self._look_up()
        near = self._sum_up(weights)
        if near >= NEAR and now >= self._next_exact and not self._is_weighing:
            self._is_weighing = True
            self._run(self._weigh_exactly([watch for watch, _ in weights], now))
        self.is_near = near >= NEAR
        is_sure = self._fullest >= FULL or now - self._exact_at <= EXACT_FOR
        self._tell(near >= FULL and is_sure)
        if near >= OVER and is_sure:
            self._relieve(weights)

    def _sum_up(self, weights: list[Weight]) -> float:
        """How full it is, 1 being the limit."""
        self.used = self._own - self._shared + sum(max(0, watch.memory - watch.shared) for watch, _ in weights)
        self.free = max(0, min(self.limit - self.used, self._room))
        return max(self.used / self.limit, self._fullest)

    def _others(self) -> list[int]:
        return [os.getpid(), *([self.forkserver] if self.forkserver else [])]

    def _look_up(self) -> None:
        self._fullest, self._room = 0.0, self.limit
        for ceiling in self._ceilings:
            used = ceiling.used()
            if used is None or self.used < used * OURS:
                continue
            self._fullest = max(self._fullest, used / ceiling.most)
            self._room = max(0, min(self._room, ceiling.most - used))

    async def _weigh_exactly(self, watches: list[Watch], now: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            self._shared = await asyncio.to_thread(self._weigh_all, watches)
        finally:
            took = loop.time() - started
            self._exact_at = now
            self._next_exact = now + took + max(EXACT_EVERY, EXACT_SHARE * took)
            self._is_weighing = False

    def _weigh_all(self, watches: list[Watch]) -> int:
        for watch in watches:
            watch.weigh(self._probe)
        return sum(max(0, (self._probe.memory(pid) or 0) - self._probe.share(pid)) for pid in self._others())

    def _tell(self, is_full: bool) -> None:
        if is_full != self.is_full:
            self.is_full = is_full
            if is_full:
                logs.event(
                    logging.WARNING,
                    "memory is nearly full, nothing more is started beside what runs",
                    used=size(self.used),
                    limit=size(self.limit),
                )
            else:
                logs.event(logging.INFO, "memory is free again", used=size(self.used), limit=size(self.limit))

    def _relieve(self, weights: list[Weight]) -> None:
        """One job at a time goes, and the next only when that one is gone and it is still needed."""
        running = [weight for weight in weights if weight.job is not None]
        if any(watch.is_judged or (job is not None and job.key == self._victim) for watch, job in running):
            return
        # The last looks were at different times, and the youngest grow fastest.
        for watch, _ in weights:
            watch.read(self._probe)
        self._look_up()
        if self._sum_up(weights) < OVER or not running:
            return
        watch, job = victim(running)
        if job is None:
            return
        self._victim = job.key
        outcome = relief(job, watch.used, is_alone=len(running) == 1, used=self.used, limit=self.limit)
        logs.event(
            logging.WARNING,
            "memory is full, a job has to go",
            **job.facts(watch.child.slot),
            memory=size(watch.used),
            used=size(self.used),
            limit=size(self.limit),
            is_given_back=isinstance(outcome, Interrupted),
        )
        self._stop(job.key, outcome)


def victim(running: list[Weight]) -> Weight:
    """The youngest of those that hold at least half as much as the largest: much is freed, and little work lost."""
    most = max(weight.watch.used for weight in running)
    return max((weight for weight in running if weight.watch.used * 2 >= most), key=lambda weight: weight.watch.entered)


def relief(job: Lease, taken: int, *, is_alone: bool, used: int, limit: int) -> Outcome:
    """How a job ends that has to go for the host's memory: given back, unless that would not help or was done before."""
    full = f"the memory of the host was nearly used up ({size(used)} of {size(limit)}), and this job took {size(taken)}"
    if is_alone:
        return Killed(memory_error("HostMemory", f"{full}; nothing else ran here", taken))
    if job.interruptions and job.last_error_kind == ErrorKind.MEMORY:
        return Killed(memory_error("HostMemory", f"{full}; it had been given back for that before", taken))
    if job.max_attempts == 1:
        return Killed(memory_error("HostMemory", f"{full}; with max_attempts=1 it is not started again", taken))
    return Interrupted(memory_error("HostMemory", f"{full}; it is given back", taken))


def memory_error(name: str, message: str, peak: int | None) -> ErrorInfo:
    return ErrorInfo(kind=ErrorKind.MEMORY, type=name, message=message, memory_peak=peak)
