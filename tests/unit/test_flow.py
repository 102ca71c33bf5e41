"""Jobs whose leases are not ours any more, or may not be: what is killed, what waits and what goes on.

With slots and children that only take note, under a clock that the test moves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tasuki_mp.job import Lease
from tasuki_mp.outcome import Interrupted, Outcome, Policy, Returned
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.flow import Flow
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.leaser import Leaser
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.outbox import Entry
from tasuki_mp.supervisor.recycle import Recycling
from tasuki_mp.supervisor.usage import NOWHERE

Key = tuple[int, int]
POLICIES = {"waits": Policy(), "fenced": Policy(fence="kill")}


class FakeChild:
    """Takes whatever it is sent; the first of it runs, and what waits behind can be taken back."""

    slot = 0

    place = NOWHERE
    pid = 1
    state = None
    is_slow = False
    jobs_run = 0

    def __init__(self) -> None:
        self.inflight: OrderedDict[Key, Lease] = OrderedDict()

    def send(self, lease: Lease, extras: object) -> bool:
        self.inflight[lease.key] = lease
        return True

    def running(self) -> tuple[Lease, float] | None:
        return next(((lease, clock.now()) for lease in self.inflight.values()), None)

    def take_back(self) -> list[Lease]:
        return [self.inflight.pop(key) for key in list(self.inflight)[1:]]


class FakeSlot:
    """Notes whom it should kill; they end when the test says so."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.child = FakeChild()
        self.killed: list[tuple[Key, Outcome]] = []
        self.reserved_for: int | None = None
        self.is_busy = False

    @property
    def children(self) -> set[FakeChild]:
        return {self.child}

    async def stop_job(self, child: object, key: Key, outcome: Outcome) -> bool:
        self.killed.append((key, outcome))
        return True


class FakeOutbox(dict[Key, Entry]):
    is_full = False

    def put(self, entry: Entry) -> None:
        self[entry.lease.key] = entry


class Stage:
    """A flow with so many slots, whose leases last a minute from `time` on."""

    def __init__(self, procs: int = 1, *, lease_for: float = 60.0) -> None:
        self.errors: list[BaseException] = []
        self.flow = Flow(
            lease_for=lease_for,
            memory_limit=1 << 40,
            recycling=Recycling(),
            metrics=Metrics(),
            hooks=Hooks(),
            on_idle=lambda: None,
            on_hello=lambda _: None,
            on_start_failed=lambda *_: None,
            failed=self.errors.append,
        )
        self.slots = [FakeSlot(index) for index in range(procs)]
        self.outbox = FakeOutbox()
        self.beats = 0
        part: Any = self
        self.flow.outbox, self.flow.heartbeat = cast("Any", self.outbox), part
        self.flow.dispatcher.slots.extend(cast("Any", self.slots))
        self.flow.dispatcher.policies = POLICIES

    def beat_now(self) -> None:
        self.beats += 1

    def lease(self, *leases: Lease) -> None:
        """As the leaser does it."""
        leaser = cast("Any", Leaser.__new__(Leaser))
        leaser._book, leaser._events = self.flow.book, self.flow
        self.flow.leased(leaser._take_in(list(leases)))

    def send(self, lease: Lease, slot: int = 0) -> None:
        """Let it be in that slot's pipe."""
        self.flow.book.add([lease])
        self.slots[slot].child.send(lease, None)

    async def end(self, slot: int, outcome: Outcome) -> None:
        """What runs in that slot ends, and the slot gets a new child."""
        child = self.slots[slot].child
        _, lease = child.inflight.popitem(last=False)
        self.slots[slot].child = FakeChild()
        self.flow.job_ended(cast("Any", self.slots[slot]), cast("Any", child), lease, outcome, 1.0, "")
        self.flow.dispatcher.pump()

    @property
    def killed(self) -> list[Key]:
        return [key for slot in self.slots for key, _ in slot.killed]

    @property
    def running(self) -> list[Key]:
        return [key for slot in self.slots for key in slot.child.inflight]


def lease(id: int, handler: str = "waits", *, lease_no: int = 1, max_attempts: int = 5) -> Lease:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Lease(id, lease_no, "q", handler, 2, 1, max_attempts, 0, "{}", at, 0.0, sent_at=clock.now())


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    return now


# ── the end of trust ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("lease_for", "trusted_for"), [(60.0, 59.0), (4.0, 3.0), (0.5, 0.375)])
def test_only_fenced_jobs_are_killed_and_only_at_the_end_of_trust(
    time: list[float], lease_for: float, trusted_for: float
) -> None:
    async def story() -> None:
        stage = Stage(3, lease_for=lease_for)
        for slot, each in enumerate((lease(1, "fenced"), lease(2, "waits"), lease(3, "fenced"))):
            stage.send(each, slot)
        stage.flow.book.renewed([(3, 1)], sent_at=time[0] + 0.01, noted=[])

        time[0] += trusted_for - 0.001
        stage.flow.kill_untrusted()
        await asyncio.sleep(0)
        assert stage.killed == []

        time[0] += 0.002
        stage.flow.kill_untrusted()
        stage.flow.kill_untrusted()
        await asyncio.sleep(0)
        assert stage.killed == [(1, 1)]

        time[0] += lease_for
        stage.flow.kill_untrusted()
        await asyncio.sleep(0)
        assert stage.killed == [(1, 1), (3, 1)]
        assert stage.slots[0].killed == [((1, 1), Interrupted())]

    asyncio.run(story())


def test_what_had_not_started_at_the_end_of_trust_is_given_back_as_such(time: list[float]) -> None:
    """It can happen where the host was asleep. A job with a single attempt must not end by it."""

    async def story() -> None:
        stage = Stage()
        stage.send(lease(1, "waits"))
        stage.send(lease(2, "fenced", max_attempts=1))
        time[0] += 60
        stage.flow.kill_untrusted()
        assert (stage.killed, stage.running) == ([], [(1, 1)])
        assert [(entry.lease.id, entry.settled.kind) for entry in stage.outbox.values()] == [(2, "release")]
        assert stage.outbox[2, 1].started_ago is None

    asyncio.run(story())


# ── leased again ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_newer_lease_waits_for_the_end_of_the_older_run_and_nobody_asks_how_that_ended(time: list[float]) -> None:
    async def story() -> None:
        stage = Stage(2)
        stage.lease(lease(1))
        stage.lease(lease(1, lease_no=2), lease(2))
        await asyncio.sleep(0)
        assert (stage.killed, stage.running) == ([(1, 1)], [(1, 1), (2, 1)])
        await stage.end(0, Returned('"older"'))
        assert (stage.running, list(stage.outbox)) == ([(1, 2), (2, 1)], [])
        await stage.end(0, Returned('"newer"'))
        assert [(key, entry.settled.result) for key, entry in stage.outbox.items()] == [((1, 2), '"newer"')]

    asyncio.run(story())


@pytest.mark.parametrize("is_in_the_pipe", [False, True])
def test_a_job_that_waits_is_run_under_its_newer_lease_alone(time: list[float], *, is_in_the_pipe: bool) -> None:
    async def story() -> None:
        stage = Stage()
        stage.lease(lease(1))
        if is_in_the_pipe:
            stage.send(lease(2))
        else:
            stage.lease(lease(2))
        stage.lease(lease(2, lease_no=2))
        await stage.end(0, Returned())
        assert (stage.running, stage.killed) == ([(2, 2)], [])
        await stage.end(0, Returned())
        assert (stage.running, list(stage.outbox)) == ([], [(1, 1), (2, 2)])

    asyncio.run(story())


def test_a_job_that_has_ended_is_run_under_its_newer_lease(time: list[float]) -> None:
    async def story() -> None:
        stage = Stage()
        stage.lease(lease(1))
        await stage.end(0, Returned())
        stage.lease(lease(1, lease_no=2))
        assert (stage.running, list(stage.outbox)) == ([(1, 2)], [(1, 1)])
        stage.flow.leases_over([(1, 1)])
        assert (1, 2) in stage.flow.book

    asyncio.run(story())


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_lease_that_comes_again_under_its_number_is_the_one_we_have(time: list[float], *, has_ended: bool) -> None:
    async def story() -> None:
        stage = Stage(2)
        stage.lease(lease(1))
        if has_ended:
            await stage.end(0, Returned())
        time[0] += 40
        stage.lease(lease(1), lease(2))
        assert stage.killed == []
        assert stage.running == ([(2, 1)] if has_ended else [(1, 1), (2, 1)])
        assert stage.flow.book.is_trusted((1, 1), at=time[0] + 58, margin=1)

    asyncio.run(story())


@pytest.mark.parametrize("lease_no", [1, 2])
def test_a_lost_lease_that_is_ours_again_waits_for_the_end_of_the_lost_run(time: list[float], lease_no: int) -> None:
    async def story() -> None:
        stage = Stage(2)
        stage.lease(lease(1))
        stage.flow.verdicts([((1, 1), "lost")])
        stage.lease(lease(1, lease_no=lease_no))
        assert stage.running == [(1, 1)]
        await stage.end(0, Interrupted())
        assert (stage.running, list(stage.outbox)) == ([(1, lease_no)], [])
        await stage.end(0, Returned('"newer"'))
        assert [(key, entry.settled.result) for key, entry in stage.outbox.items()] == [((1, lease_no), '"newer"')]

    asyncio.run(story())


@pytest.mark.parametrize("lease_no", [1, 2])
def test_the_newer_lease_does_not_wait_for_a_run_that_never_began(time: list[float], lease_no: int) -> None:
    async def story() -> None:
        stage = Stage()
        stage.lease(lease(1))
        stage.flow.verdicts([((1, 1), "lost")])
        stage.lease(lease(1, lease_no=lease_no))
        taken = [stage.slots[0].child.inflight.popitem()[1]]  # its child died as it was about to begin
        assert stage.running == []
        stage.flow.jobs_returned(taken)
        assert (stage.running, len(stage.flow.dispatcher)) == ([(1, lease_no)], 0)

    asyncio.run(story())
