"""Whether this host has the memory for another job: what running jobs have declared is kept for them until they take it.

A job that is alone always may run, whatever it declares, or nothing would ever happen on a host whose children have grown.
Of the jobs that declare memory, none overtakes another one here that waits for it; those that declare nothing do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from tasuki_mp.job import Lease
from tasuki_mp.limits import Limits, Room
from tasuki_mp.supervisor.child import Child
from tasuki_mp.supervisor.host import Host
from tasuki_mp.supervisor.slot import Slot

PATIENCE: Final = 30.0
"""Seconds that a leased job waits here for memory before another host may have it."""
MODEST_FOR: Final = 10.0
"""Seconds for which only jobs are leased that would fit at once; then one may come that has to wait, or it never would."""


class Admission:
    """Asked by the dispatcher before it leases and before it dispatches. Without a host there is room for everything."""

    def __init__(self, slots: list[Slot], limits_of: Callable[[Lease], Limits]) -> None:
        self.host: Host | None = None
        self.used_of: Callable[[Child], int] = lambda _: 0
        """Bytes that a child's job takes now."""
        self.waiting: set[int] = set()
        """Jobs in the ready buffer that wait for memory: found anew by each pass of the dispatcher."""
        self._slots = slots
        self._limits_of = limits_of
        self._waited_at = float("-inf")
        self._largest = 0
        """The most that a job here has declared: as long as that is free, nothing need be passed over."""

    def has_room(self, declared: int | None, child: Child) -> bool:
        """Whether a job that declares so much memory may go to that child now."""
        host = self.host
        if host is None or (declared is None and not host.is_full):
            return True
        if not self._is_any_running():
            return True
        if host.is_full:
            return False
        more = (declared or 0) - self._promised(child)
        return more <= 0 or (not self.waiting and more <= self._unpromised())

    def room(self, most: Room, now: float) -> Room:
        """What a job may declare to be leased now."""
        if self.waiting:
            self._waited_at = now
        if not self._largest or self.host is None or not self._is_any_running():
            return most
        left = self._unpromised()
        if left >= self._largest or (not self.waiting and now - self._waited_at > MODEST_FOR):
            return most
        return Room(max(0, min(most.memory, left)), most.cpus)

    def seen(self, declared: int) -> None:
        """A job that declares so much has been leased."""
        self._largest = max(self._largest, declared)

    @property
    def is_full(self) -> bool:
        """Whether nothing at all may be started now."""
        return self.host is not None and self.host.is_full and self._is_any_running()

    def _unpromised(self) -> int:
        """Bytes that are free and that nobody running has declared."""
        if self.host is None:
            return 0
        kept = sum(max(0, self._promised(child) - self.used_of(child)) for child in self._children())
        return self.host.free - kept

    def _promised(self, child: Child) -> int:
        """What the jobs in this child's pipe have declared, the most demanding one; nearly always one is like the other."""
        if not child.inflight:
            return 0
        jobs = child.inflight.values()
        return max(self._limits_of(job).memory or 0 for job in (next(iter(jobs)), next(reversed(jobs))))

    def _is_any_running(self) -> bool:
        return any(child.inflight for child in self._children())

    def _children(self) -> Iterator[Child]:
        for slot in self._slots:
            yield from slot.children
