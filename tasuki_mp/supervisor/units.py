"""Who has the host's units: jobs of several, the slots kept idle while such a job runs, and the turn of those that wait.

A job of n units runs in the child of one slot, while n-1 other slots are reserved for it and run nothing. Jobs of one unit
use the gaps while it waits. It may be passed over as often as the host has slots; then it *collects*: nothing else is
dispatched until n slots are idle, but for quick jobs as long as a long one is in its way anyhow. With jobs of one unit alone
nothing here does anything.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tasuki_mp.job import Lease
from tasuki_mp.supervisor.child import Child, Key
from tasuki_mp.supervisor.slot import Slot

RETURNS: Final = 2
"""So often a job is given back before it collects: nobody else has wanted it."""
FIRST_PATIENCE: Final = 1.0
"""Seconds that a job waits here for its units before another host may have it; doubled with each time that it comes back."""
LONGEST_PATIENCE: Final = 300.0
OTHERS_FIRST: Final = 0.5
"""Seconds for which a job that collected and was given back is left to other hosts."""
KEPT_FREE: Final = 5.0
"""Seconds after which its units are given to others if it has not come back."""
REMEMBERED: Final = 256
"""Jobs whose turn is remembered, wherever they are."""
QUICK: Final = 0.100
"""Seconds that a job may take, by its handler's average, to run in units that another one collects."""
LONG: Final = 0.250
"""Seconds a job has been running when it is one of those whose end nobody can foresee."""


class Big:
    """A job of several units that waits, here or (having been here) anywhere."""

    __slots__ = ("id", "passed", "returned", "since", "units")

    def __init__(self, id: int) -> None:
        self.id = id
        self.units = 1
        self.since = 0.0
        self.passed = 0
        self.returned = 0


class Units:
    """The accounts. `slots` is the dispatcher's list of all slots."""

    def __init__(self, slots: list[Slot]) -> None:
        self.waiting: dict[int, Big] = {}
        """Jobs of several units in the ready buffer."""
        self.collecting: Big | None = None
        self._slots = slots
        self._known: OrderedDict[int, Big] = OrderedDict()
        self._running: dict[Key, Child] = {}
        self._away_since: float | None = None
        """When the collecting job was given back."""

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, id: int, units: int, now: float) -> None:
        """A job has come into the ready buffer."""
        big = self._known.setdefault(id, Big(id))
        self._known.move_to_end(id)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        big.units = min(units, len(self._slots))
        big.since = now
        self.waiting[id] = big
        if self.collecting is big:
            self._away_since = None
        elif big.returned >= RETURNS:
            self._collect(big)

    def remove(self, id: int) -> None:
        """It has left the ready buffer for good, as far as this host is concerned."""
        big = self.waiting.pop(id, None)
        if big is not None:
            self._known.pop(id, None)
            if self.collecting is big:
                self.collecting = None

    def overtaken(self, bigs: list[Big]) -> None:
        """Another job was dispatched past these."""
        for big in bigs:
            big.passed += 1
            if big.passed >= len(self._slots):
                self._collect(big)

    def tired(self, now: float) -> list[Big]:
        """Those that have waited so long that another host should have a chance."""
        return [
            big
            for big in self.waiting.values()
            if now - big.since > min(LONGEST_PATIENCE, FIRST_PATIENCE * 2 ** min(big.returned, 16))
        ]

    def given_back(self, big: Big, now: float) -> None:
        """It has left the ready buffer for want of units; what it has waited counts when it comes back."""
        self.waiting.pop(big.id, None)
        big.returned += 1
        if self.collecting is big:
            self._away_since = now

    def _collect(self, big: Big) -> None:
        if self.collecting is None:
            self.collecting, self._away_since = big, None

    # ── who may run ───────────────────────────────────────────────────────────────────────────────────────────────────

    def let_go(self) -> None:
        """Free the slots that were reserved for jobs that have ended."""
        for key, child in list(self._running.items()) if self._running else ():
            if key not in child.inflight:
                del self._running[key]
                for slot in self._slots:
                    if slot.reserved_for == key[0]:
                        slot.reserved_for = None

    def slot_for(self, big: Big, lease: Lease) -> Slot | None:
        """Where the job can start; None as long as so many units are not free."""
        if self.collecting not in (None, big):
            return None
        free = self._free()
        slot: Slot | None = None
        if lease.crashes == 0:
            slot = next((each for each in free if each.child is not None and not each.child.is_fixed), None)
        if slot is None and (len(free) >= big.units or any(each.reserved_for == lease.id for each in self._slots)):
            slot = self.fresh_slot_for(lease)
        # The fresh one is not among the free ones: it is reserved already.
        return slot if slot is not None and len(free) - (slot in free) >= big.units - 1 else None

    def gap(self) -> int | None:
        """While a job waits for its units: the largest job that could run beside it, else None."""
        return max(1, len(self._free())) if self.waiting and self._away_since is None else None

    def fresh_slot_for(self, lease: Lease) -> Slot | None:
        """A job that has killed a process runs only in a child that has run nothing yet, and alone."""
        reserved = next((slot for slot in self._slots if slot.reserved_for == lease.id), None)
        if reserved is not None:
            child = reserved.child
            return reserved if child is not None and child.jobs_run == 0 and not child.inflight else None
        for slot in self._slots:
            if slot.child is not None and not slot.child.inflight and slot.reserved_for is None:
                if slot.child.jobs_run == 0:
                    return slot
                slot.reserved_for = lease.id
                slot.replace(f"job {lease.id} gets a fresh child")
                return None
        return None

    def _free(self) -> list[Slot]:
        """The slots that run nothing and are reserved for nobody, those that can take a job at once first."""
        free = [slot for slot in self._slots if slot.reserved_for is None and not slot.is_busy]
        return sorted(free, key=lambda slot: slot.child is None)

    def started(self, big: Big, lease: Lease, slot: Slot) -> None:
        """The job has been sent to that slot's child: reserve the others that it needs."""
        self.remove(big.id)
        if slot.child is not None:
            self._running[lease.key] = slot.child
        for other in [each for each in self._free() if each is not slot][: big.units - 1]:
            other.reserved_for = big.id

    def may_pass(self, estimate: float | None, now: float) -> bool:
        """Whether a job of one unit that takes so long may be dispatched now."""
        collecting = self.collecting
        if collecting is None:
            return True
        if self._away_since is not None and now - self._away_since > KEPT_FREE:
            self.collecting = self._away_since = None
            return True
        if estimate is None or estimate > QUICK:
            return False
        soon = sum(1 for slot in self._slots if slot.reserved_for is None and not is_long_at_it(slot.child, now))
        return soon < collecting.units

    def recalls(self, now: float) -> bool:
        """Whether the job that collects has been given back, and should come again if no other host has it now."""
        return self._away_since is not None and now - self._away_since > OTHERS_FIRST


def is_long_at_it(child: Child | None, now: float) -> bool:
    """Whether that child's job has been running for so long that its end can't be foreseen."""
    running = None if child is None else child.running()
    return running is not None and now - running[1] > LONG
