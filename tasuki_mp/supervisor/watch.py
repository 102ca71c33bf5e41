"""What the sampler knows of one child."""

from __future__ import annotations

from tasuki_mp.job import Lease
from tasuki_mp.supervisor.child import Child
from tasuki_mp.supervisor.probe import Cpu, Probe


class Watch:
    """What is known of one child. Bytes; `job` is the one that runs in it, or ran last."""

    __slots__ = (
        "base",
        "below",
        "below_at",
        "child",
        "cpu",
        "cpu_at",
        "entered",
        "is_judged",
        "job",
        "limit",
        "look_at",
        "memory",
        "own",
        "peak",
        "shared",
    )

    def __init__(self, child: Child, base: int) -> None:
        self.child = child
        self.base = base
        """At its hello, with what it shares with others."""
        self.own = 0
        """At its hello, of what it shares only its part."""
        self.memory = base
        """Now, all that is below it included."""
        self.shared = 0
        """What of that belongs to others too, or is counted twice, when it was last looked at closely."""
        self.job: Lease | None = None
        self.entered = 0.0
        self.limit: int | None = None
        self.peak = 0
        self.cpu: Cpu | None = None
        self.cpu_at = 0.0
        self.below: list[int] = []
        self.below_at = 0.0
        self.look_at = 0.0
        self.is_judged = False

    @property
    def used(self) -> int:
        """Beyond its size at hello."""
        return max(0, self.memory - self.base)

    def read(self, probe: Probe) -> bool:
        """Learn how large it is now, with all that is known to be below it; False if it is dying."""
        own = probe.memory(self.child.pid)
        if own is None:
            return False
        self.memory = own + sum(probe.memory(pid) or 0 for pid in self.below)
        if self.job is not None:
            self.peak = max(self.peak, self.used)
        return True

    def weigh(self, probe: Probe) -> int:
        """Its exact size: of pages that it shares with others only its part. Slow, so in a thread."""
        memory, share = 0, 0
        for pid in (self.child.pid, *self.below):
            memory += probe.memory(pid) or 0
            share += probe.share(pid)
        self.shared = max(0, memory - share)
        return share

    def begin(self, job: Lease, entered: float, limit: int | None) -> None:
        """Another job runs in it than at the last look."""
        self.job, self.entered, self.limit = job, entered, limit
        self.peak, self.cpu, self.cpu_at, self.is_judged = 0, None, 0.0, False
