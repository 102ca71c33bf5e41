"""What the outbox tells those who wait for it, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from tasuki_mp.job import Lease
from tasuki_mp.outcome import Settled, SettledKind
from tasuki_mp.store.work import Finished, FinishItem
from tasuki_mp.supervisor.alone import Alone
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import Link
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.outbox import Entry, Outbox
from tasuki_mp.supervisor.voice import Voice
from tests.unit.test_leaser import a_lease


class WritingLink(Link):
    """Everything that is sent is applied."""

    def __init__(self) -> None:
        super().__init__("", name="", timeout=1)

    async def call(self, function: Callable[..., Any], *_: Any, items: Sequence[FinishItem], **__: Any) -> Any:  # type: ignore[override]
        return [Finished(item.id, item.lease_no, "applied", item.settled.kind) for item in items]


class Told:
    """What the outbox has told."""

    def __init__(self) -> None:
        self.over: list[int] = []
        self.again = 0
        self.room = 0

    def leases_over(self, keys: Sequence[tuple[int, int]]) -> None:
        self.over += [id for id, _ in keys]

    def batches_touched(self, ids: set[int]) -> None:
        pass

    def outbox_has_room(self) -> None:
        self.room += 1

    def goes_again(self) -> None:
        self.again += 1


def entry(lease: Lease, kind: SettledKind) -> Entry:
    return Entry(lease, Settled(kind=kind), "{}", None, 0.0)


def flushed(*kinds: SettledKind, bound: int) -> Told:
    """What is told when one outcome of each kind has been written."""

    async def scenario() -> Told:
        told = Told()
        outbox = Outbox(
            WritingLink(),
            Alone("", owner=uuid4()),
            owner=uuid4(),
            bound=bound,
            events=told,
            voice=Voice(is_wanted=True),
            metrics=Metrics(),
            hooks=Hooks(),
        )
        for number, kind in enumerate(kinds):
            outbox.put(entry(a_lease(number), kind))
        outbox.start()
        assert await outbox.drained(30)
        await outbox.stop()
        return told

    return asyncio.run(scenario())


def test_who_waits_for_a_full_outbox_is_told_once_when_it_has_room() -> None:
    told = flushed("completed", "completed", "completed", bound=3)
    assert (told.over, told.room) == ([0, 1, 2], 1)
    assert flushed("completed", "completed", bound=3).room == 0


def test_jobs_that_go_again_are_told_and_others_are_not() -> None:
    assert flushed("completed", "failed", "canceled", "release", bound=9).again == 0
    assert flushed("retry", "snooze", "completed", bound=9).again == 1, "once for all of them"
