"""A supervisor's part that is told to stop stops, also when it is woken in the very moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
import uvloop

from tasuki_mp.job import Lease
from tasuki_mp.limits import Reach
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.leaser import Leaser
from tasuki_mp.supervisor.link import Link
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.voice import Voice


class NoRoom:
    """The events of a supervisor that wants no job, so that its leaser never asks the database."""

    def wants(self) -> int:
        return 0

    def reach(self) -> Reach:
        raise AssertionError

    def leased(self, leases: list[Lease]) -> None:
        raise AssertionError

    def leased_again(self, older: list[Lease]) -> None:
        raise AssertionError

    def found_nothing(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("steps", range(6))
def test_a_leaser_that_is_woken_while_it_is_stopped(
    steps: int, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def scenario() -> None:
        leaser = Leaser(
            Link("", name="", timeout=1),
            owner=uuid4(),
            lease_for=60,
            poll=3600,
            procs=1,
            queues={"a": 1},
            book=LeaseBook(lease_for=60),
            events=NoRoom(),
            voice=Voice(is_wanted=True),
            metrics=Metrics(),
            hooks=Hooks(),
        )
        leaser.start()
        for _ in range(5):
            await asyncio.sleep(0)  # it waits for its next poll
        leaser.room()
        for _ in range(steps):
            await asyncio.sleep(0)  # so far has it come in waking up
        stopping = asyncio.create_task(leaser.stop())
        await asyncio.wait([stopping], timeout=60)
        assert stopping.done()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())
