"""The dispatcher: leased jobs wait here in the ready buffer until a slot takes them, and come back here if it can't.

Runs on the loop and does no I/O of its own but the pipes to the children. A slot gets several jobs at a time only while
its handlers are known to be quick; what waits behind a job that turns out slow is taken back and given to another slot.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from tasuki_mp import logs, wire
from tasuki_mp.job import Lease
from tasuki_mp.limits import NONE, Limits, Reach, Room, reach, read_limits
from tasuki_mp.outcome import NotStarted, Outcome, Policy
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.admission import PATIENCE, Admission
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.child import Child
from tasuki_mp.supervisor.estimate import Estimates, room_for_waiting
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.recycle import too_full
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.units import Big, Units, is_long_at_it

Key = tuple[int, int]

PIPE_SECONDS: Final = 0.025
"""Work that may wait in one slot's pipe, by its handlers' averages. The supervisor looks in when half of it is done: with
10 ms, jobs of a millisecond cost it half as much again, since it finds the caches cold each time."""
PIPE_MOST: Final = 128
HANDFUL: Final = 32
HANDFUL_SECONDS: Final = 0.001
"""A slot gets so many jobs in a row, or so much work, if there are as many for every other: to wake a child for each job that
does nothing, because its turn comes only after all others', was a fifth of the supervisor's time."""
HANDING_OVER: Final = 0.000_020
"""Seconds that a child needs for a job beside its handler."""
LEAST_REST: Final = 0.001
"""Seconds. A child that has less than twice that much work waiting is listened to all the time."""
READY_SECONDS: Final = 0.250
"""Work that may wait on this host for each slot, beside what runs; jobs of more than half of it wait in the database."""
BEHIND_ONE: Final = READY_SECONDS / 2
"""A job that takes up to so many seconds may have one more waiting behind it, so that its child need not idle while the
supervisor hears of its end."""
READY_MOST: Final = 1024
"""With twice as many, jobs that do nothing were slower by a tenth."""
READY_BYTES: Final = 32 * 1024 * 1024
"""Payloads that may wait on this host, by the average size."""
TOO_SLOW: Final = 0.020
"""Seconds beyond twice the expected time after which a running job is in the way of what waits behind it."""
STUCK: Final = 1.0
"""Seconds that a leased job waits for a slot before it is given back, so that another host can have it."""


class Settle(Protocol):
    """How the dispatcher hands on a decided attempt: to be settled and written down."""

    def __call__(self, lease: Lease, outcome: Outcome) -> None: ...


class Dispatcher:
    """The ready buffer and the slots. `wants()` says how many more jobs should be leased."""

    def __init__(
        self,
        book: LeaseBook,
        estimates: Estimates,
        *,
        settle: Settle,
        watch: Callable[[Slot, Child, Lease, Limits], None],
        stale: Callable[[], None],
        hooks: Hooks,
    ) -> None:
        self.slots: list[Slot] = []
        self.policies: Mapping[str, Policy] = {}
        """What each handler declares."""
        self.room = Room()
        """What this host could give to a single job."""
        self.blocked: set[int] = set()
        """Jobs whose earlier run is still being stopped."""
        self._book = book
        self._estimates = estimates
        self._settle = settle
        self._watch = watch
        self._stale = stale
        self._hooks = hooks
        self._ready: deque[tuple[Lease, float]] = deque()
        self._last: Slot | None = None
        """Who got the last job, and may get so many more of that handler before others do."""
        self._handler = ""
        self._more = 0
        self._units = Units(self.slots)
        self.memory = Admission(self.slots, self.limits_of)
        self.is_quiescing = False
        """Whether nothing is dispatched any more."""

    def __len__(self) -> int:
        return len(self._ready)

    # ── how much to lease ─────────────────────────────────────────────────────────────────────────────────────────────

    def wants(self) -> int:
        """How many jobs there is room for: the idle slots, and a bounded buffer of short work."""
        if self.is_quiescing or self.memory.is_full:
            return 0
        idle = sum(1 for slot in self.slots if _is_free(slot))
        now = clock.now()
        if not self._units.may_pass(self._estimates.overall, now):
            return 1 if self._units.recalls(now) else 0
        # A slot whose job has been running for long frees nothing soon: what is leased for it would only be given back.
        serving = sum(1 for slot in self.slots if slot.child is not None and not is_long_at_it(slot.child, now))
        ready = len(self._ready) - len(self._units.waiting.keys() | self.memory.waiting)
        waiting = ready + sum(max(0, len(slot.child.inflight) - 1) for slot in self.slots if slot.child is not None)
        most = min(READY_MOST, int(READY_BYTES / max(1.0, self._estimates.payload_size)))
        room = room_for_waiting(self._estimates.overall, slots=serving, seconds=READY_SECONDS, most=most)
        wanted = idle + room - waiting
        # Topping up a buffer that is still half full would make many small leases out of few large ones.
        return wanted if idle > ready or wanted * 2 > room else 0

    @property
    def job_seconds(self) -> float:
        """What jobs take here: their average, or what all those that run have taken by now if that is more."""
        now = clock.now()
        runs = (child.running() for slot in self.slots for child in slot.children)
        return max(self._estimates.overall or 0.0, min((now - run[1] for run in runs if run is not None), default=0.0))

    @property
    def reach(self) -> Reach:
        """The jobs that this host could run."""
        return self._reach_in(self.room)

    @property
    def reach_now(self) -> Reach:
        """The jobs that are worth leasing now: that there is memory for, and units while one waits for its own."""
        room, gap = self.memory.room(self.room, clock.now()), self._units.gap()
        if gap is not None and gap < room.cpus:
            room = msgspec.structs.replace(room, cpus=gap)
        return self._reach_in(room, is_whole=room == self.room)

    def _reach_in(self, room: Room, *, is_whole: bool = True) -> Reach:
        return reach({name: policy.limits for name, policy in self.policies.items()}, room, is_whole=is_whole)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs here."""
        return not self._ready and not any(child.inflight for slot in self.slots for child in slot.children)

    # ── jobs in ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, leases: list[Lease]) -> None:
        """Freshly leased jobs."""
        if self.is_quiescing:
            for lease in leases:
                self._settle(lease, NotStarted())
            return
        now = clock.now()
        for lease in leases:
            self._estimates.add_payload(len(lease.payload))
            self._ready.append((lease, now))
            self._note_limits(lease, now)
        self.pump()

    def put_back(self, leases: list[Lease]) -> None:
        """Jobs that a child did not start: first in the line again."""
        self._line_up_first(leases)
        self.pump()

    def _line_up_first(self, leases: list[Lease]) -> None:
        now = clock.now()
        ours = [lease for lease in leases if self._book.unassign(lease)]
        if len(ours) < len(leases):
            self.blocked -= {lease.id for lease in leases} - {lease.id for lease in ours}
            leases = ours
        if self.is_quiescing:
            for lease in leases:
                self._settle(lease, NotStarted())
            return
        self._ready.extendleft((lease, now) for lease in reversed(leases))
        for lease in leases:
            self._note_limits(lease, now)

    def _note_limits(self, lease: Lease, now: float) -> None:
        limits = self.limits_of(lease)
        if limits.cpus is not None and limits.cpus > 1:
            self._units.add(lease.id, limits.cpus, now)
        if limits.memory is not None:
            self.memory.seen(limits.memory)

    def pump(self) -> None:
        """Give waiting jobs to slots that can take one."""
        if self.is_quiescing:
            return
        units = self._units
        units.let_go()
        self.memory.waiting.clear()
        if self.memory.is_full:
            return
        if not self._ready:
            self._balance()
            return
        now, self._more = clock.now(), 0
        if units.collecting is not None:
            self._bring_forward(units.collecting.id)
        passed: list[tuple[Lease, float]] = []
        waiting: list[Big] = []
        is_told = logs.log.isEnabledFor(logging.DEBUG)
        while self._ready:
            lease, _ = self._ready[0]
            if lease.id in self.blocked:
                passed.append(self._ready.popleft())
                continue
            big = units.waiting.get(lease.id)
            slot = self._slot_for(lease, now) if big is None else units.slot_for(big, lease)
            limits = self.limits_of(lease)
            memory = limits.memory
            if slot is not None and slot.child is not None:
                reason = ""
                if not self.memory.has_room(memory, slot.child):
                    self.memory.waiting.add(lease.id)
                elif memory is not None and (reason := too_full(slot.child.held, memory)):
                    slot.replace(reason)
                if reason or lease.id in self.memory.waiting:
                    self._more = 0  # the slot is as it was, and may be anybody's
                    passed.append(self._ready.popleft())
                    continue
            if slot is None:
                if big is not None:
                    waiting.append(big)
                elif lease.crashes == 0:
                    break
                # It waits for a fresh child, or for several units; those behind it need not.
                passed.append(self._ready.popleft())
                continue
            held = self._book.fresh(lease.key, at=now)
            if held is None:
                self._stale()  # dispatched again once a heartbeat has got through
                break
            self._hooks.reach("before_dispatch")
            extras = None if limits == NONE and lease.checkpoint is None else wire.Extras(limits, lease.checkpoint)
            if slot.child is None or not slot.child.send(lease, extras):
                break
            self._ready.popleft()
            if extras is not None:
                self._watch(slot, slot.child, lease, limits)
            if slot.reserved_for == lease.id:
                slot.reserved_for = None
            if big is not None:
                units.started(big, lease, slot)
            if waiting:
                units.overtaken(waiting)
            held.child = slot.child
            if is_told:
                logs.event(logging.DEBUG, "job dispatched", **lease.facts(slot.index))
        self._ready.extendleft(reversed(passed))
        if not self._ready:
            self._balance()

    def _balance(self) -> None:
        """Nothing is ready and a slot is idle: it gets what waits behind another slot's job."""
        if not any(_is_free(slot) for slot in self.slots):
            return
        fullest = max(self.slots, key=lambda slot: len(slot.child.inflight) if slot.child is not None else 0)
        if fullest.child is not None and len(fullest.child.inflight) > 1:
            taken = fullest.child.take_back()
            if taken:
                self.put_back(taken)

    def _slot_for(self, lease: Lease, now: float) -> Slot | None:
        estimate = self._estimates.of(lease.handler)
        if self._units.collecting is not None and not self._units.may_pass(estimate, now):
            return None
        if lease.crashes > 0:
            return self._units.fresh_slot_for(lease)
        last = self._last
        if self._more > 0 and last is not None and last.child is not None and last.reserved_for is None:
            if lease.handler == self._handler:
                self._more -= 1
                return last
            self._more = 0
        best: Slot | None = None
        fewest, room = PIPE_MOST, 0
        for slot in self.slots:
            child = slot.child
            if child is None or slot.reserved_for is not None:
                continue
            count = len(child.inflight)
            if count < fewest and (found := self._room_in(child, estimate)) > 0:
                best, fewest, room = slot, count, found
                if count == 0:
                    break
        self._last, self._handler, self._more = best, lease.handler, 0
        if best is not None and estimate is not None:
            handful = min(HANDFUL, len(self._ready) // len(self.slots), int(HANDFUL_SECONDS / max(estimate, 1e-6)))
            self._more = min(handful, room) - 1
        return best

    def _bring_forward(self, id: int) -> None:
        if self._ready[0][0].id != id and (entry := self._find(id)) is not None:
            self._ready.remove(entry)
            self._ready.appendleft(entry)

    def _find(self, id: int) -> tuple[Lease, float] | None:
        return next((entry for entry in self._ready if entry[0].id == id), None)

    def _room_in(self, child: Child, estimate: float | None) -> int:
        """How many more jobs of that length this child may have: one if it is free, quick ones behind quick ones."""
        count = len(child.inflight)
        if estimate is None or child.is_slow:
            return 0 if count else 1
        each = estimate
        if count:
            first = next(iter(child.inflight.values()))
            ahead = self._estimates.of(first.handler)
            if ahead is None or first.crashes > 0:
                return 0
            # Nearly always one handler after the other: its average stands for all that wait.
            each = max(ahead, estimate)
        room = min(PIPE_MOST, int(PIPE_SECONDS / max(each, 1e-6))) - count
        if room < 1 and (count == 0 or (count == 1 and each <= BEHIND_ONE)):
            return 1
        return room

    def rest_of(self, child: Child) -> float:
        """Seconds for which nobody need look at this child: half of what it will take for what waits there."""
        count = len(child.inflight)
        if count < 3 or child.is_slow:
            return 0.0
        first = next(iter(child.inflight.values()))
        rest = (count - 1) * ((self._estimates.of(first.handler) or 0.0) + HANDING_OVER) / 2
        return rest if rest >= LEAST_REST else 0.0

    # ── jobs out of turn ──────────────────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Every few hundredths of a second: free what waits behind a slow job, give back what no slot will take."""
        now = clock.now()
        self.pump()
        for slot in self.slots:
            child = slot.child
            if child is None or len(child.inflight) < 2:
                continue
            running = child.running()
            if running is None:
                continue
            elapsed, expected = now - running[1], self._estimates.of(running[0].handler) or 0.0
            if elapsed > 2 * expected + TOO_SLOW:
                child.is_slow = True
                self.put_back(child.take_back())
        if self._ready:
            self._give_back(now)

    def _give_back(self, now: float) -> None:
        """Let other hosts have what has waited here for too long."""
        units = self._units
        for big in units.tired(now):
            if (entry := self._find(big.id)) is not None:
                self._ready.remove(entry)
                units.given_back(big, now)
                self._unreserve(big.id)
                self._settle(entry[0], NotStarted())
        hungry = self.memory.waiting
        for entry in [each for each in self._ready if each[0].id in hungry and now - each[1] > PATIENCE]:
            self._ready.remove(entry)
            units.remove(entry[0].id)
            self._unreserve(entry[0].id)
            self._settle(entry[0], NotStarted())
        if units.may_pass(None, now) and any(_is_free(slot) for slot in self.slots):
            return
        while entry := next(
            (each for each in self._ready if each[0].id not in units.waiting and each[0].id not in hungry), None
        ):
            lease, since = entry
            if now - since <= STUCK:
                return
            self._ready.remove(entry)
            self._unreserve(lease.id)
            self._settle(lease, NotStarted())

    def forget(self, key: Key) -> Lease | None:
        """Take a job out of the ready buffer or its child's pipe: its lease is gone or it was canceled.

        None when it is not waiting: it runs, or has ended.
        """
        place = self.child_running(key)
        if place is not None:
            # Not put_back, which would give the job to the next idle slot at once.
            self._line_up_first(place[1].take_back())
        found = next((entry for entry in self._ready if entry[0].key == key), None)
        if found is not None:
            self._ready.remove(found)
            self._unreserve(found[0].id)
            self._units.remove(found[0].id)
        if place is not None:
            self.pump()
        return None if found is None else found[0]

    def child_running(self, key: Key) -> tuple[Slot, Child] | None:
        """Where this lease's job is, if a child has it."""
        for slot in self.slots:
            for child in slot.children:
                if key in child.inflight:
                    return (slot, child)
        return None

    def quiesce(self) -> None:
        """Dispatch nothing more; whatever has not started is given back."""
        self.is_quiescing = True
        for slot in self.slots:
            for child in slot.children:
                self.put_back(child.take_back())
        while self._ready:
            self._settle(self._ready.popleft()[0], NotStarted())

    def limits_of(self, lease: Lease) -> Limits:
        """What this lease's job may take: its own limits, and its handler's where it has none."""
        policy = self.policies.get(lease.handler)
        declared = policy.limits if policy is not None else NONE
        return declared if lease.limits is None else read_limits(lease.limits).over(declared)

    def _unreserve(self, id: int) -> None:
        for slot in self.slots:
            if slot.reserved_for == id:
                slot.reserved_for = None


def _is_free(slot: Slot) -> bool:
    return slot.reserved_for is None and slot.child is not None and not slot.child.inflight
