"""Which jobs get the host's units, and in which turn: the dispatcher with slots that only take note."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tasuki_mp.job import Lease
from tasuki_mp.limits import Room, limits
from tasuki_mp.outcome import NotStarted, Policy
from tasuki_mp.supervisor import clock, units
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.estimate import Estimates
from tasuki_mp.supervisor.hooks import Hooks


class FakeChild:
    def __init__(self) -> None:
        self.inflight: OrderedDict[tuple[int, int], Lease] = OrderedDict()
        self.jobs_run = 0
        self.is_slow = False
        self.is_fixed = False
        self.since = 0.0

    def send(self, lease: Lease, extras: object) -> bool:
        self.inflight[lease.key] = lease
        self.since = clock.now()
        return True

    def running(self) -> tuple[Lease, float] | None:
        return next(((lease, self.since) for lease in self.inflight.values()), None)

    def take_back(self) -> list[Lease]:
        return []


class FakeSlot:
    def __init__(self, index: int) -> None:
        self.index = index
        self.child: FakeChild | None = FakeChild()
        self.reserved_for: int | None = None

    @property
    def children(self) -> set[FakeChild]:
        return {self.child} if self.child else set()

    @property
    def is_busy(self) -> bool:
        return bool(self.child and self.child.inflight)

    def replace(self, reason: str) -> None:
        self.child = None


def _watch(*_: object) -> None:
    pass


class Host:
    """A dispatcher with so many slots, under a clock that the test moves."""

    def __init__(self, procs: int) -> None:
        self.slots = [FakeSlot(index) for index in range(procs)]
        self.given_back: list[int] = []
        self.estimates = Estimates()
        self.book = LeaseBook(lease_for=1e6)
        self.dispatcher = Dispatcher(
            self.book, self.estimates, settle=self._settle, watch=_watch, stale=lambda: None, hooks=Hooks()
        )
        self.dispatcher.room = Room(cpus=procs)
        self.dispatcher.policies = {f"h{cpus}": Policy(limits=limits(cpus=cpus)) for cpus in (1, 2, 3, 4)}
        self.dispatcher.slots.extend(cast("Any", self.slots))

    def _settle(self, lease: Lease, outcome: object) -> None:
        assert isinstance(outcome, NotStarted)
        self.given_back.append(lease.id)

    def add(self, *jobs: tuple[int, int], crashes: int = 0) -> None:
        """Lease jobs: (id, units)."""
        leases = [lease(id, cpus, crashes) for id, cpus in jobs]
        self.book.add(leases)
        self.dispatcher.add(leases)

    def end(self, *ids: int) -> None:
        for slot in self.slots:
            if slot.child:
                for key in [key for key in slot.child.inflight if key[0] in ids]:
                    del slot.child.inflight[key]
                    slot.child.jobs_run += 1
        self.dispatcher.pump()

    @property
    def running(self) -> set[int]:
        return {key[0] for slot in self.slots if slot.child for key in slot.child.inflight}


def lease(id: int, cpus: int, crashes: int = 0) -> Lease:
    limits = f'{{"cpus": {cpus}}}' if cpus > 1 else None
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Lease(id, 1, "q", f"h{cpus}", 2, 1, 5, crashes, "{}", at, 0.0, limits, sent_at=clock.now())


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    return now


def test_a_job_keeps_as_many_slots_as_it_has_units(time: list[float]) -> None:
    host = Host(4)
    host.add((1, 3), (2, 1), (3, 1))
    assert host.running == {1, 2}
    host.end(2)
    assert host.running == {1, 3}
    host.add((4, 1), (5, 1))
    host.end(1)
    assert host.running == {3, 4, 5}
    assert [slot.reserved_for for slot in host.slots] == [None] * 4


def test_as_many_jobs_are_wanted_as_there_are_units(time: list[float]) -> None:
    host = Host(4)
    assert host.dispatcher.wants() == 4
    host.add((1, 3))
    assert host.dispatcher.wants() == 1
    host.add((2, 1))
    assert host.dispatcher.wants() == 0
    host.end(1)
    assert host.dispatcher.wants() == 3


def test_a_job_that_needs_more_units_than_are_free_lets_others_pass_until_it_was_passed_often_enough(
    time: list[float],
) -> None:
    host = Host(2)
    host.add((1, 1), (2, 2), (3, 1))
    assert host.running == {1, 3}, "the gap was used"
    host.end(3)
    host.add((4, 1))
    assert host.running == {1, 4}
    host.add((5, 1), (6, 1))
    host.end(4)
    assert host.running == {1}, "passed by as many jobs as there are slots: the unit is kept free"
    assert host.dispatcher.wants() == 0
    host.end(1)
    assert host.running == {2}
    host.end(2)
    assert host.running == {5, 6}


def test_while_a_job_waits_only_what_fits_into_the_gap_is_leased(time: list[float]) -> None:
    host = Host(4)
    assert host.dispatcher.reach_now == host.dispatcher.reach
    assert host.dispatcher.reach.handlers == ("h1", "h2", "h3", "h4")
    host.add((1, 1), (2, 1), (3, 4))
    reach = host.dispatcher.reach_now
    assert (reach.handlers, set(reach.larger), reach.room.cpus, reach.is_whole) == (
        ("h1", "h2"),
        {"h3", "h4"},
        2,
        False,
    )
    assert host.dispatcher.wants() == 2
    host.end(1, 2)
    assert host.running == {3}
    assert host.dispatcher.reach_now == host.dispatcher.reach


def test_quick_jobs_pass_a_job_that_waits_for_a_long_one(time: list[float]) -> None:
    host = Host(2)
    for _ in range(20):
        host.estimates.add("h1", 0.001)
    host.add((1, 1), (2, 2), (3, 1))
    host.end(3)
    host.add((4, 1))
    host.end(4)
    assert host.dispatcher._units.collecting is not None
    host.add((5, 1))
    assert host.running == {1}, "both units may be free at any moment"
    time[0] += units.LONG + 0.1
    host.dispatcher.pump()
    assert host.running == {1, 5}, "job 1 has turned out to be a long one"
    host.add((6, 1))
    host.end(1, 5)
    host.add((7, 1))
    assert host.running == {6}, "which waited behind one of them already"
    host.end(6)
    assert host.running == {2}


def test_what_waits_too_long_is_given_back_and_has_its_turn_when_it_returns(time: list[float]) -> None:
    host = Host(2)
    host.add((1, 1), (2, 2))
    waited: list[float] = []
    for _ in range(3):
        began = time[0]
        count = len(host.given_back)
        while len(host.given_back) == count:
            time[0] += 0.25
            host.dispatcher.tick()
        waited.append(time[0] - began)
        assert host.given_back[-1] == 2
        host.add((2, 2))
    assert waited == [1.25, 2.25, 4.25]
    assert host.dispatcher._units.collecting is not None, "nobody else has wanted it"
    assert host.dispatcher.wants() == 0
    host.end(1)
    assert host.running == {2}


def test_the_units_of_a_job_that_was_given_back_are_kept_free_for_a_while(time: list[float]) -> None:
    host = Host(2)
    host.add((1, 1), (2, 2))
    for _ in range(2):
        time[0] += 20
        host.dispatcher.tick()
        host.add((2, 2))
    time[0] += 20
    host.dispatcher.tick()
    assert host.given_back == [2, 2, 2]
    assert host.dispatcher.wants() == 0, "other hosts first"
    time[0] += 1
    assert host.dispatcher.wants() == 1, "nobody took it?"
    time[0] += units.KEPT_FREE
    assert host.dispatcher.wants() == 1, "somebody did, and the free slot is anybody's"
    host.add((3, 1))
    assert host.running == {1, 3}


def test_the_rest_that_waits_with_it_is_given_back_too(time: list[float]) -> None:
    host = Host(2)
    host.add((1, 1), (2, 2), (3, 1))
    host.end(3)
    host.add((4, 1))
    host.end(4)
    host.add((5, 1))
    time[0] += 1.1
    host.dispatcher.tick()
    assert 5 in host.given_back


def test_a_job_that_crashed_gets_a_fresh_child_and_its_units(time: list[float]) -> None:
    host = Host(2)
    for slot in host.slots:
        assert slot.child
        slot.child.jobs_run = 1
    host.add((1, 2), crashes=1)
    assert host.running == set()
    fresh = next(slot for slot in host.slots if slot.child is None)
    fresh.child = FakeChild()
    host.dispatcher.pump()
    assert host.running == {1}
    assert {slot.reserved_for for slot in host.slots} == {None, 1}
    host.end(1)
    assert [slot.reserved_for for slot in host.slots] == [None, None]


def test_a_job_of_several_units_gets_a_child_whose_libraries_can_still_change_their_threads(time: list[float]) -> None:
    host = Host(2)
    for slot in host.slots:
        assert slot.child
        slot.child.jobs_run = 1
    first, second = host.slots
    assert first.child
    first.child.is_fixed = True
    host.add((1, 2))
    assert second.child
    assert second.child.inflight
    second.child.is_fixed = True
    host.end(1)
    host.add((2, 2))
    assert host.running == set()
    fresh = next(slot for slot in host.slots if slot.child is None)
    fresh.child = FakeChild()
    host.dispatcher.pump()
    assert host.running == {2}


def test_a_job_that_is_canceled_while_it_collects_lets_the_others_go_on(time: list[float]) -> None:
    host = Host(2)
    host.add((1, 1), (2, 2), (3, 1))
    host.end(3)
    host.add((4, 1))
    host.end(4)
    host.add((5, 1))
    assert host.running == {1}
    assert host.dispatcher.forget((2, 1)) is not None
    host.dispatcher.pump()
    assert host.running == {1, 5}


@pytest.mark.parametrize(
    ("seconds", "jobs", "first"),
    [
        (0.00001, 128, [0] * 32 + [1] * 32),
        (0.00001, 12, [0] * 6 + [1] * 3),  # so that nobody gets nothing
        (0.00025, 64, [0] * 4 + [1] * 4),
        (0.002, 64, [0, 1, 0, 1]),
    ],
)
def test_quick_jobs_come_to_a_slot_by_the_handful(
    time: list[float], seconds: float, jobs: int, first: list[int]
) -> None:
    host = Host(2)
    host.estimates.add("h1", seconds)
    host.add(*((n, 1) for n in range(jobs)))
    place = {key[0]: slot.index for slot in host.slots if slot.child for key in slot.child.inflight}
    assert [place[n] for n in range(len(first))] == first
    counts = [len(slot.child.inflight) for slot in host.slots if slot.child]
    assert max(counts) - min(counts) <= 32


def test_what_jobs_take_is_known_from_those_before_or_by_how_long_all_of_them_have_run(time: list[float]) -> None:
    host = Host(2)
    assert host.dispatcher.job_seconds == 0
    host.add((1, 1))
    time[0] += 5
    assert host.dispatcher.job_seconds == 5
    host.add((2, 1))
    assert host.dispatcher.job_seconds == 0, "one that has just begun may be short"
    host.estimates.add("h1", 3.0)
    time[0] += 2
    assert host.dispatcher.job_seconds == 3
    host.end(1, 2)
    assert host.dispatcher.job_seconds == 3
