"""When a supervisor counts as alive and as ready, with parts that only say how they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasuki_mp.config import RunConfig
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.http import Health
from tasuki_mp.supervisor.metrics import Gauges, Metrics
from tasuki_mp.supervisor.vitals import Vitals

WELL = Health(is_alive=True, is_ready=True)


class FakeSlot:
    """Has a child that serves, and may have others that run their last job."""

    def __init__(self) -> None:
        self.child: SimpleNamespace | None = SimpleNamespace(inflight={})
        self.leaving: list[SimpleNamespace] = []

    @property
    def children(self) -> list[SimpleNamespace]:
        return [*self.leaving, *([self.child] if self.child else [])]


class Host:
    """Two slots with a child each, a heartbeat of just now, and a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "now", lambda: self.now)
        self.slots = [FakeSlot() for _ in range(2)]
        self.heartbeat = SimpleNamespace(age=0.0)

    def vitals(self, *, lease: float = 60.0) -> Vitals:
        flow: Any = self
        self.dispatcher = Dispatched(self.slots)
        self.outbox = [None] * 3
        return Vitals(RunConfig(app="a:app", dsn="", procs=2, memory_limit=0, lease=lease), flow, Metrics())


class Dispatched:
    """Four jobs wait here for a slot."""

    def __init__(self, slots: list[FakeSlot]) -> None:
        self.slots = slots

    def __len__(self) -> int:
        return 4


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_it_is_well_with_one_child_of_many(host: Host) -> None:
    vitals = host.vitals()
    assert vitals.health() == WELL
    host.slots[0].child = None
    assert vitals.health() == WELL


def test_while_no_child_comes_up_it_is_alive_and_not_ready(host: Host) -> None:
    vitals = host.vitals()
    children = [slot.child for slot in host.slots]
    for slot in host.slots:
        slot.child = None
    assert vitals.health() == Health(is_alive=True, is_ready=False, reasons=("no slot has a child",))
    host.slots[1].child = children[1]
    assert vitals.health() == WELL


@pytest.mark.parametrize("lease", [60.0, 2.0])
def test_without_a_heartbeat_for_half_a_lease_it_is_not_ready(host: Host, lease: float) -> None:
    vitals = host.vitals(lease=lease)
    host.heartbeat.age = lease / 2
    assert vitals.health() == WELL
    host.heartbeat.age = lease / 2 + 0.1
    reason = f"no heartbeat has reached the database for {lease / 2:.0f} s"
    assert vitals.health() == Health(is_alive=True, is_ready=False, reasons=(reason,))


@pytest.mark.parametrize(("lease", "patience"), [(60.0, 15.0), (4.0, 5.0)])
def test_a_loop_that_does_not_come_round_is_not_alive(host: Host, lease: float, patience: float) -> None:
    vitals = host.vitals(lease=lease)
    host.now += patience
    assert vitals.health() == WELL
    host.now += 0.1
    reason = f"the loop has been stuck for {patience:.0f} s"
    assert vitals.health() == Health(is_alive=False, is_ready=False, reasons=(reason,))
    vitals.ticked_at = host.now
    assert vitals.health() == WELL


def test_every_reason_is_given(host: Host) -> None:
    vitals = host.vitals()
    host.now, host.heartbeat.age, vitals.is_stopping = host.now + 100, 100.0, True
    for slot in host.slots:
        slot.child = None
    health = vitals.health()
    assert (health.is_alive, health.is_ready) == (False, False)
    assert [reason.split(maxsplit=2)[:2] for reason in health.reasons] == [
        ["the", "loop"],
        ["no", "heartbeat"],
        ["no", "slot"],
        ["stopping"],
    ]


def test_a_job_is_counted_that_runs_in_a_child_whose_place_another_has_taken(host: Host) -> None:
    vitals = host.vitals()
    assert host.slots[0].child is not None
    host.slots[0].child.inflight = {(1, 1): "runs", (2, 1): "waits in the pipe"}
    host.slots[1].leaving = [SimpleNamespace(inflight={(3, 1): "runs"}), SimpleNamespace(inflight={})]
    host.now, host.heartbeat.age = host.now + 1, 2.0
    assert vitals.gauges() == Gauges(slots=2, children=2, running=2, ready=4, outbox=3, heartbeat_age=2.0, loop_lag=1.0)
    host.slots[0].child = None
    assert vitals.gauges().children == 1
