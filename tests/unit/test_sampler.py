"""What is done about memory, on a made-up /proc: when it is looked at, who is killed, who has to go, who may come."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tasuki_mp.job import Lease
from tasuki_mp.limits import Limits, Room
from tasuki_mp.memory import Ceiling
from tasuki_mp.outcome import Interrupted, Killed, Outcome
from tasuki_mp.supervisor import host as hosts
from tasuki_mp.supervisor.admission import MODEST_FOR, Admission
from tasuki_mp.supervisor.host import Host
from tasuki_mp.supervisor.probe import Cpu, Probe
from tasuki_mp.supervisor.sampler import LATEST, SOONEST, YOUNG, Sampler, pause
from tasuki_mp.supervisor.usage import NOTHING_KNOWN, Used

MIB = 1 << 20
GIB = 1 << 30
LIMIT = 10 * GIB
OWN = 100 * MIB
"""Of the supervisor."""
HELLO = 50 * MIB


class FakeProbe(Probe):
    """Sizes by pid; `shared` is what of them others have too."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.shared: dict[int, int] = {}
        self.trees: dict[int, list[int]] = {}
        self.reads = 0

    def memory(self, pid: int) -> int | None:
        self.reads += 1
        return self.sizes.get(pid, OWN if pid == os.getpid() else None)

    def share(self, pid: int) -> int:
        return (self.memory(pid) or 0) - self.shared.get(pid, 0)

    def cpu(self, pid: int) -> Cpu | None:
        return Cpu(12.5, 2.25)

    def below(self, pid: int) -> list[int]:
        return self.trees.get(pid, [])


@dataclass(eq=False)
class FakeChild:
    pid: int
    inflight: OrderedDict[tuple[int, int], Lease] = field(default_factory=OrderedDict)
    since: float = 0.0
    is_dead: bool = False
    slot: int = 0

    def running(self) -> tuple[Lease, float] | None:
        return next(((lease, self.since) for lease in self.inflight.values()), None)

    def cpu_before(self) -> Cpu:
        return Cpu(12.0, 2.0)


class FakeSlot:
    def __init__(self, pid: int) -> None:
        self.child = FakeChild(pid)

    @property
    def children(self) -> set[FakeChild]:
        return {self.child}


class Machine:
    """A sampler and a host over so many children, whose pids are 1, 2, 3; the time is seconds after their hello."""

    def __init__(self, count: int = 3, ceilings: tuple[Ceiling, ...] = ()) -> None:
        self.probe = FakeProbe()
        self.slots = [FakeSlot(pid) for pid in range(1, count + 1)]
        self.limits: dict[int, Limits] = {}
        self.stopped: dict[int, Outcome] = {}
        self.host = Host(self.probe, limit=LIMIT, ceilings=ceilings, stop=self._stop, run=self._run)
        slots = cast("Any", self.slots)
        self.sampler = Sampler(
            self.probe, self.host, slots=slots, limits_of=self._limits_of, stop=self._stop, run=self._run
        )
        self.admission = Admission(slots, self._limits_of)
        self.admission.host = self.host
        self.admission.used_of = self.sampler.used_now
        for slot in self.slots:
            self.probe.sizes[slot.child.pid] = HELLO
            self.sampler.meet(cast("Any", slot.child))

    def start(self, pid: int, *, at: float = 0.0, limits: Limits | None = None, **facts: Any) -> Lease:
        lease = Lease(
            **{
                "id": pid * 10,
                "lease_no": 1,
                "queue": "q",
                "handler": "h",
                "priority": 2,
                "attempt": 1,
                "max_attempts": 5,
                "crashes": 0,
                "payload": "{}",
                "waited": 0.0,
                "scheduled_at": datetime(2026, 1, 1, tzinfo=UTC),
                **facts,
            }
        )
        self.limits[lease.id] = limits or Limits()
        child = self.child(pid)
        child.inflight[lease.key] = lease
        child.since = at
        return lease

    def child(self, pid: int) -> FakeChild:
        return self.slots[pid - 1].child

    def take(self, pid: int, size: int) -> None:
        """Let its job have taken so much beyond its size at hello."""
        self.probe.sizes[pid] = HELLO + size

    def used(self, pid: int, lease: Lease) -> Used:
        return self.sampler.used(cast("Any", self.child(pid)), lease.key)

    def _limits_of(self, lease: Lease) -> Limits:
        return self.limits[lease.id]

    def _stop(self, key: tuple[int, int], outcome: Outcome) -> None:
        self.stopped[key[0]] = outcome

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_nearer_to_the_limit_the_sooner_the_next_look() -> None:
    assert [pause(headroom) for headroom in (8 * GIB, GIB, GIB // 4, 0, -GIB)] == [LATEST, 0.5, 0.125, SOONEST, SOONEST]


def test_with_nothing_running_nothing_is_read() -> None:
    machine = Machine()
    before = machine.probe.reads
    for tick in range(100):
        machine.sampler.tick(float(tick))
    assert machine.probe.reads == before


def test_quick_jobs_are_not_looked_at() -> None:
    machine = Machine(1)
    reads = []
    for tick in range(40):
        machine.child(1).inflight.clear()
        machine.start(1, at=tick * 0.025, id=tick)
        machine.sampler.tick(tick * 0.025 + YOUNG / 2)
        reads.append(machine.probe.reads)
    assert reads[-1] - reads[0] <= 1, "but for the supervisor itself"


def test_a_job_beyond_its_limit_is_killed_with_its_peak() -> None:
    machine = Machine()
    victim = machine.start(1, limits=Limits(memory=100 * MIB))
    machine.start(2, limits=Limits(memory=100 * MIB))
    machine.take(1, 99 * MIB)
    machine.sampler.tick(1.0)
    assert machine.stopped == {}
    machine.take(1, 150 * MIB)
    machine.sampler.tick(1.1)
    machine.take(1, 160 * MIB)
    machine.sampler.tick(3.0)
    outcome = machine.stopped.pop(victim.id)
    assert isinstance(outcome, Killed)
    assert (outcome.error.kind, outcome.error.memory_peak) == ("memory", 150 * MIB)
    assert machine.stopped == {}, "nobody else, and it only once"
    assert machine.used(1, victim) == Used(0.5, 0.25, 160 * MIB)


def test_processes_that_share_pages_are_weighed_before_anybody_is_killed_for_them() -> None:
    machine = Machine()
    machine.start(1, limits=Limits(memory=100 * MIB))
    machine.take(1, 80 * MIB)
    machine.probe.trees[1] = [101]
    machine.probe.sizes[101] = HELLO + 80 * MIB
    machine.probe.shared[101] = HELLO + 75 * MIB
    machine.sampler.tick(1.0)
    assert machine.stopped == {}
    machine.probe.shared[101] = 0
    machine.sampler.tick(2.0)
    assert list(machine.stopped) == [10]


def test_what_was_seen_of_one_job_is_not_told_of_the_next() -> None:
    machine = Machine()
    first = machine.start(1)
    machine.take(1, 500 * MIB)
    machine.sampler.tick(1.0)
    assert machine.used(1, first).peak == 500 * MIB
    machine.child(1).inflight.clear()
    machine.take(1, 5 * MIB)
    second = machine.start(1, at=1.0, id=11)
    assert machine.used(1, second) == NOTHING_KNOWN
    machine.sampler.tick(3.0)
    assert machine.used(1, second).peak == 5 * MIB
    assert machine.used(1, first) == NOTHING_KNOWN


# ── the host ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_youngest_of_the_large_ones_is_given_back_one_at_a_time() -> None:
    machine = Machine()
    for pid, taken, entered in ((1, 4 * GIB, 0.0), (2, 5 * GIB, 10.0), (3, GIB, 20.0)):
        machine.start(pid, at=entered)
        machine.take(pid, taken)
    machine.sampler.tick(30.0)
    outcome = machine.stopped.pop(20)
    assert isinstance(outcome, Interrupted)
    assert outcome.error is not None
    assert (outcome.error.kind, outcome.error.memory_peak) == ("memory", 5 * GIB)
    machine.sampler.tick(31.0)
    assert machine.stopped == {}, "the first one is still going"
    machine.child(2).is_dead = True
    machine.child(2).inflight.clear()
    machine.sampler.tick(31.1)
    assert machine.stopped == {}, "what a dead child held is free"
    machine.take(1, 9 * GIB)
    machine.sampler.tick(40.0)
    assert list(machine.stopped) == [10]


@pytest.mark.parametrize(
    ("others", "facts"),
    [
        (0, {}),
        (1, {"interruptions": 1, "last_error_kind": "memory"}),
        (1, {"max_attempts": 1}),
    ],
    ids=["alone", "given back before", "one attempt"],
)
def test_who_would_come_back_for_nothing_ends(others: int, facts: dict[str, Any]) -> None:
    machine = Machine(1 + others)
    machine.start(1, **facts)
    machine.take(1, 9 * GIB + 800 * MIB)
    for pid in range(2, 2 + others):
        machine.start(pid)
    machine.sampler.tick(10.0)
    outcome = machine.stopped[10]
    assert isinstance(outcome, Killed)
    assert outcome.error.kind == "memory"


def test_an_earlier_failure_for_want_of_memory_is_no_interruption() -> None:
    machine = Machine()
    machine.start(1, last_error_kind="memory", crashes=1)
    machine.start(2)
    machine.take(1, 9 * GIB + 800 * MIB)
    machine.sampler.tick(10.0)
    assert isinstance(machine.stopped[10], Interrupted)


def test_pages_of_a_shared_image_are_counted_once() -> None:
    machine = Machine()
    for pid in (1, 2, 3):
        machine.start(pid)
        machine.take(pid, 4 * GIB)
        machine.probe.shared[pid] = 3 * GIB
    machine.sampler.tick(10.0)
    machine.sampler.tick(12.0)
    assert machine.stopped == {}
    assert machine.host.used < 4 * GIB


def test_a_cgroup_that_fills_up_counts_if_it_is_by_us(tmp_path: Any) -> None:
    folder = tmp_path
    (folder / "memory.stat").write_text("inactive_file 1000\n")
    (folder / "memory.current").write_text(f"{4 * GIB}\n")
    machine = Machine(ceilings=(Ceiling(4 * GIB, folder, is_v2=True),))
    for pid in (1, 2):
        machine.start(pid)
    machine.take(1, GIB)
    machine.sampler.tick(10.0)
    machine.sampler.tick(12.0)
    assert machine.stopped == {}
    machine.take(1, 3 * GIB)
    for second in range(14, 18):
        machine.sampler.tick(float(second))
    assert list(machine.stopped) == [10]


def test_from_nine_tenths_on_nothing_is_started_beside_what_runs() -> None:
    machine = Machine()
    running = machine.start(1)
    machine.take(1, 9 * GIB)
    for second in range(10, 14):
        machine.sampler.tick(float(second))
    assert machine.host.is_full
    assert machine.stopped == {}
    assert machine.admission.is_full
    other = machine.start(2)
    del machine.child(2).inflight[other.key]
    assert not machine.admission.has_room(None, cast("Any", machine.child(2)))
    del machine.child(1).inflight[running.key]
    assert machine.admission.has_room(None, cast("Any", machine.child(2))), "one always may run"


# ── who may come ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_declared_is_kept_until_it_is_taken() -> None:
    machine = Machine()
    machine.start(1, limits=Limits(memory=6 * GIB))
    idle = machine.start(2)
    child = cast("Any", machine.child(2))
    del child.inflight[idle.key]
    machine.take(1, GIB)
    machine.sampler.tick(10.0)
    assert machine.admission.has_room(None, child)
    assert machine.admission.has_room(3 * GIB, child)
    assert not machine.admission.has_room(4 * GIB, child)
    machine.admission.waiting.add(99)
    assert not machine.admission.has_room(3 * GIB, child), "it would overtake"
    assert machine.admission.has_room(None, child)


def test_only_what_fits_at_once_is_leased_but_now_and_then_one_that_has_to_wait() -> None:
    most = Room(memory=LIMIT, cpus=4)
    machine = Machine()
    admission = machine.admission
    assert admission.room(most, 100.0) == most
    machine.start(1, limits=Limits(memory=6 * GIB))
    machine.sampler.tick(100.0)
    assert admission.room(most, 100.0) == most, "no job ever asked for more than is free"
    admission.seen(5 * GIB)
    admission.waiting.add(20)
    first = admission.room(most, 100.0)
    assert 3 * GIB < first.memory < 4 * GIB
    assert first.cpus == 4
    admission.waiting.clear()
    assert admission.room(most, 100.0 + MODEST_FOR / 2) == first
    assert admission.room(most, 101.0 + MODEST_FOR) == most
    assert hosts.FULL < hosts.OVER < 1


def test_where_no_file_can_be_opened_nothing_is_seen_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", fail)
    probe = Probe()
    assert (probe.memory(os.getpid()), probe.share(os.getpid()), probe.cpu(os.getpid())) == (None, 0, None)
