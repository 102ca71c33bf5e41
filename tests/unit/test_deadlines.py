"""What a job's deadline adds to how it ended."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tasuki_mp.limits import Limits
from tasuki_mp.outcome import Died, ErrorInfo, ErrorKind, Killed, Outcome, Returned
from tasuki_mp.supervisor.deadlines import Deadlines


class Lease:
    key = (1, 1)


class Child:
    """One whose job never starts."""

    def __init__(self) -> None:
        self.inflight = [Lease.key]

    def entered_at(self, key: tuple[int, int]) -> float | None:
        return None


def ended(outcome: Outcome, *, ran_for: float, limits: Limits) -> Outcome:
    async def end() -> Outcome:
        deadlines = Deadlines(cast("Any", None), failed=cast("Any", None))
        deadlines.dispatched(cast("Any", None), cast("Any", Child()), cast("Any", Lease()), limits)
        return deadlines.ended(Lease.key, outcome, ran_for=ran_for)

    return asyncio.run(end())


def death(signal: str) -> Died:
    return Died(ErrorInfo(kind=ErrorKind.CRASH, type="ChildDied", message="killed", signal=signal))


def test_a_death_by_the_kernels_timer_is_a_timeout() -> None:
    outcome = ended(death("SIGKILL"), ran_for=15.1, limits=Limits(timeout=10))

    assert isinstance(outcome, Killed)
    assert outcome.error.kind is ErrorKind.TIMEOUT
    assert outcome.error.message == "ran for 15.1 s and was killed by the kernel's timer; its timeout is 10 s"


@pytest.mark.parametrize(
    ("outcome", "ran_for", "limits"),
    [
        (death("SIGKILL"), 9.0, Limits(timeout=10)),
        (death("SIGSEGV"), 15.1, Limits(timeout=10)),
        (death("SIGKILL"), 15.1, Limits(soft_timeout=10)),
        (death("SIGKILL"), 15.1, Limits()),
        (Returned("1"), 15.1, Limits(timeout=10)),
    ],
)
def test_everything_else_stays_what_it_is(outcome: Outcome, ran_for: float, limits: Limits) -> None:
    assert ended(outcome, ran_for=ran_for, limits=limits) == outcome


def test_a_deadline_that_passes_between_a_death_and_its_telling_is_still_known() -> None:
    """As for a supervisor that was frozen: it wakes with a dead child and a timer that is due, in whatever order."""

    async def end() -> Outcome:
        deadlines = Deadlines(cast("Any", None), failed=cast("Any", None))
        child = Child()
        deadlines.dispatched(cast("Any", None), cast("Any", child), cast("Any", Lease()), Limits(timeout=0.001))
        child.inflight.clear()  # the slot has seen that its process is gone, and asks how it ended
        rung = asyncio.Event()
        asyncio.get_running_loop().call_later(0.002, rung.set)
        await rung.wait()
        return deadlines.ended(Lease.key, death("SIGKILL"), ran_for=15.1)

    assert isinstance(asyncio.run(end()), Killed)
