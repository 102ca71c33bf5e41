"""The clock of leases: the one that goes on while the machine sleeps."""

from __future__ import annotations

import time

import pytest

from tasuki_mp.child import interrupts, main
from tasuki_mp.supervisor import clock


def test_a_supervisor_and_its_children_share_the_clock_that_a_suspend_does_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def asleep(which: int) -> float:
        """A machine that has slept for an hour."""
        asked.append(which)
        return {time.CLOCK_BOOTTIME: 3700.0, time.CLOCK_MONOTONIC: 100.0}[which]

    monkeypatch.setattr(time, "clock_gettime", asleep)
    assert clock.now() == 3700.0
    assert asked == [time.CLOCK_BOOTTIME]
    assert main._CLOCK == interrupts._CLOCK == time.CLOCK_BOOTTIME
