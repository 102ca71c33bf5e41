"""Memory, as the flow of jobs sees it: children met, jobs ended, deaths explained, children replaced in good time.

Joins the sampler, the host's accounts, the kernel's count of OOM kills and the rules of recycling.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from tasuki_mp import logs, wire
from tasuki_mp.job import Lease
from tasuki_mp.limits import size
from tasuki_mp.memory import OomKills, ceilings
from tasuki_mp.outcome import Died, ErrorInfo, Killed, Outcome
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.child import Child
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.host import Host, Run, Stop, memory_error
from tasuki_mp.supervisor.probe import Probe
from tasuki_mp.supervisor.recycle import Recycling, almost_full
from tasuki_mp.supervisor.sampler import YOUNG, Sampler
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.usage import Used

LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the OOM killer's count and at the children's age and size."""
HOARD: Final = 64 << 20
"""Bytes that an idle child may hold beyond its size at hello while memory is short."""


class Memory:
    """Owned by the flow. `sampler` and `host` are for whoever shows them."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        limit: int,
        recycling: Recycling,
        stop: Stop,
        run: Run,
        probe: Probe | None = None,
        kills: OomKills | None = None,
    ) -> None:
        probe = probe or Probe()
        self.host = Host(probe, limit=limit, ceilings=ceilings(), stop=stop, run=run)
        self.sampler = Sampler(
            probe, self.host, slots=dispatcher.slots, limits_of=dispatcher.limits_of, stop=stop, run=run
        )
        dispatcher.memory.host = self.host
        dispatcher.memory.used_of = self.sampler.used_now
        self._dispatcher = dispatcher
        self._recycling = recycling
        self._kills = kills or OomKills()
        self._looked_at = 0.0

    def meet(self, child: Child, *, forkserver: int) -> None:
        """A child has said hello."""
        self.host.forkserver = forkserver
        self.sampler.meet(child)

    def forget(self, child: Child) -> None:
        """It is dead."""
        self.sampler.forget(child)

    def tick(self, now: float) -> None:
        """Look at what it is time to look at."""
        self.sampler.tick(now)
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            self._kills.look(now)
            for slot in self._dispatcher.slots:
                self._maybe_replace(slot, now)

    def finished(self, slot: Slot, child: Child, lease: Lease, used: wire.Used, ran_for: float) -> Used:
        """What a job used, in so many seconds, whose child lives on, or is replaced now because of it."""
        child.held = used.held
        peak = used.peak
        # The sampler has not seen a younger one.
        if ran_for >= YOUNG and (seen := self.sampler.used(child, lease.key).peak) is not None:
            peak = max(seen, peak or 0)
        if child is slot.child:
            if peak and (reason := almost_full(peak, self._dispatcher.limits_of(lease).memory)):
                slot.replace(reason)
            elif self._recycling.max_jobs is not None:
                self._maybe_replace(slot, clock.now())
        return Used(used.user_us / 1e6, used.system_us / 1e6, peak)

    def explain(self, child: Child, lease: Lease, outcome: Outcome) -> tuple[Outcome, Used]:
        """What a job used whose child is dead, by the last look at it; a death that came from outside is named."""
        used = self.sampler.used(child, lease.key)
        match outcome:
            case Died(error):
                error = msgspec.structs.replace(error, memory_peak=used.peak)
                if error.signal == "SIGKILL" and not child.is_killed:
                    return self._killed(error, used), used
                return Died(error), used
            case Killed(error) if error.memory_peak is not None and used.peak is not None:
                peak = max(error.memory_peak, used.peak)
                return Killed(msgspec.structs.replace(error, memory_peak=peak)), msgspec.structs.replace(
                    used, peak=peak
                )
            case _:
                return outcome, used

    def _killed(self, error: ErrorInfo, used: Used) -> Outcome:
        """By whom? Not by us."""
        if self._kills.explains(clock.now()):
            seen = "" if used.peak is None else f", which took {size(used.peak)} when last looked at"
            message = f"the kernel's OOM killer killed the child process{seen}"
            logs.event(logging.WARNING, "the kernel's OOM killer killed a child", memory=used.peak)
            oom = memory_error("OomKilled", message, used.peak)
            return Killed(msgspec.structs.replace(oom, signal=error.signal, traceback=error.traceback))
        whom = (
            "somebody else; the kernel counts no OOM kill" if self._kills.is_known else "maybe the kernel's OOM killer"
        )
        return Died(msgspec.structs.replace(error, message=f"{error.message} by {whom}"))

    def _maybe_replace(self, slot: Slot, now: float) -> None:
        child = slot.child
        if child is not None and not child.is_replaced:
            held = self.sampler.used_now(child)
            if self.host.is_near and not child.inflight and held >= HOARD:
                slot.replace(f"it holds {size(held)} for nothing, and memory is wanted")
                return
            spread = child.pid % 16 / 16
            reason = self._recycling.reason(jobs=child.jobs_run, age=now - child.born_at, spread=spread)
            if reason:
                slot.replace(reason)
