"""The sampler: how much memory and CPU time each running job takes, and what to do when it is too much.

Runs on the loop, at the supervisor's tick, and reads /proc of busy children: each once a second, up to twenty times as often
the nearer it is to a limit. `memory` is what a job's processes hold beyond their child's size at its hello. A job beyond its
own limit is killed; what the host's limit asks for is decided in `host`. With nothing running it reads nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tasuki_mp.job import Lease
from tasuki_mp.limits import Limits, size
from tasuki_mp.outcome import Killed, Outcome
from tasuki_mp.supervisor.child import Child, Key
from tasuki_mp.supervisor.host import Host, Weight, memory_error
from tasuki_mp.supervisor.probe import Cpu, Probe
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.usage import NOTHING_KNOWN, Used
from tasuki_mp.supervisor.watch import Watch

YOUNG: Final = 0.05
"""Seconds that a job has run before it is looked at: most are over by then."""
SOONEST: Final = 0.05
LATEST: Final = 1.0
FASTEST: Final = float(1 << 30)
"""Bytes a second that a process may take: a core can't fill pages much faster."""
CPU_EVERY: Final = 0.5
BELOW_EVERY: Final = 0.25
"""Seconds between two looks for processes that a job has started."""

Stop = Callable[[Key, Outcome], None]
Run = Callable[[Coroutine[Any, Any, None]], None]


def pause(headroom: float) -> float:
    """Seconds until the next look at a process that may take so many bytes more before something has to be done."""
    return min(LATEST, max(SOONEST, headroom / FASTEST / 2))


class Sampler:
    """Owned by the flow of jobs, which tells it of children and asks it what their jobs used."""

    def __init__(
        self,
        probe: Probe,
        host: Host,
        *,
        slots: list[Slot],
        limits_of: Callable[[Lease], Limits],
        stop: Stop,
        run: Run,
    ) -> None:
        self._probe = probe
        self._host = host
        self._slots = slots
        self._limits_of = limits_of
        self._stop = stop
        self._run = run
        self._watches: dict[Child, Watch] = {}

    # ── children ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def meet(self, child: Child) -> None:
        """A child has said hello and has run nothing yet: its size now is where its jobs' memory begins."""
        base = self._probe.memory(child.pid)
        if (
            base is None
        ):  # it is gone, or this process may open no more files: without a beginning nothing can be judged
            return
        watch = self._watches[child] = Watch(child, base)
        self._run(self._weigh(watch))

    def forget(self, child: Child) -> None:
        """It is dead, and what became of its jobs is told."""
        self._watches.pop(child, None)

    def watch_of(self, child: Child) -> Watch | None:
        return self._watches.get(child)

    async def _weigh(self, watch: Watch) -> None:
        watch.own = await asyncio.to_thread(watch.weigh, self._probe)

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> None:
        """Look at what it is time to look at."""
        running = 0
        weights: list[Weight] = []
        for slot in self._slots:
            for child in slot.children:
                watch = self._watches.get(child)
                if watch is None or child.is_dead:
                    continue
                run = child.running()
                if run is not None:
                    running += 1
                    if watch.job is None or watch.job.key != run[0].key:
                        watch.begin(run[0], run[1], self._limits_of(run[0]).memory)
                weights.append(Weight(watch, None if run is None else run[0]))
        if not running:
            return
        for watch, job in weights:
            if now >= watch.look_at and (job is None or now - watch.entered >= YOUNG):
                self._look(watch, job, now)
                watch.look_at = now + pause(min(_headroom(watch), self._host.free / running))
        self._host.weigh(weights, now)

    def _look(self, watch: Watch, job: Lease | None, now: float) -> None:
        if now >= watch.below_at:
            watch.below = self._probe.below(watch.child.pid)
            watch.below_at = now + BELOW_EVERY
        if not watch.read(self._probe) or job is None:
            return
        if now - watch.cpu_at >= CPU_EVERY:
            watch.cpu = self._cpu(watch)
            watch.cpu_at = now
        if watch.limit is not None and watch.used > watch.limit and not watch.is_judged:
            watch.is_judged = True
            if watch.below:
                self._run(self._judge(watch, job))
            else:
                self._exceeded(watch, job, watch.used)

    async def _judge(self, watch: Watch, job: Lease) -> None:
        """Processes that share pages count them once each; look closely before a job is killed for that."""
        used = await asyncio.to_thread(watch.weigh, self._probe) - watch.own
        if watch.job is not job:
            return
        if watch.limit is not None and used > watch.limit:
            self._exceeded(watch, job, used)
        watch.is_judged = False

    def _exceeded(self, watch: Watch, job: Lease, used: int) -> None:
        message = f"took {size(used)} beyond its child's size at its start; its limit is {size(watch.limit or 0)}"
        self._stop(job.key, Killed(memory_error("MemoryLimit", message, used)))

    def _cpu(self, watch: Watch) -> Cpu | None:
        """What the job has used so far."""
        before, now = watch.child.cpu_before(), self._probe.cpu(watch.child.pid)
        if now is None:
            return None
        return Cpu(max(0.0, now.user - before.user), max(0.0, now.system - before.system))

    def used_now(self, child: Child) -> int:
        """Bytes of its job, by the last look."""
        watch = self._watches.get(child)
        return 0 if watch is None else watch.used

    # ── what a job used ───────────────────────────────────────────────────────────────────────────────────────────────

    def used(self, child: Child, key: Key) -> Used:
        """By the last look at it; nothing if there was none."""
        watch = self._watches.get(child)
        if watch is None or watch.job is None or watch.job.key != key or not watch.cpu_at:
            return NOTHING_KNOWN
        cpu = watch.cpu
        return Used(cpu.user if cpu else None, cpu.system if cpu else None, watch.peak)


def _headroom(watch: Watch) -> float:
    return math.inf if watch.limit is None else watch.limit - watch.used
