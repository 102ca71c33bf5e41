"""What an idle leaser asks the database, and what the rescuer does about jobs that stand in its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tasuki_mp.job import Lease
from tasuki_mp.limits import Reach
from tasuki_mp.store import upkeep
from tasuki_mp.supervisor import clock, identity, watermark
from tasuki_mp.supervisor import leaser as leasing
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.heartbeat import Heartbeat
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.leaser import Leaser, LeaserEvents
from tasuki_mp.supervisor.link import Link
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.rescue import Rescuer
from tasuki_mp.supervisor.voice import Voice

POLL = 0.05


class ScriptedLink(Link):
    """Answers without a database; `asked` counts by the name of the store's function."""

    def __init__(self, answers: dict[str, Callable[[], Any]]) -> None:
        super().__init__("", name="", timeout=1)
        self.asked: Counter[str] = Counter()
        self._answers = answers

    async def call(self, function: Callable[..., Any], *_: Any, **__: Any) -> Any:  # type: ignore[override]
        self.asked[function.__name__] += 1
        return self._answers.get(function.__name__, lambda: None)()


class Idle:
    """The events of a supervisor with room for a job. It counts how often it was told that there is none."""

    def __init__(self) -> None:
        self.found = asyncio.Semaphore(0)

    def wants(self) -> int:
        return 1

    def reach(self) -> Reach:
        return Reach(handlers=("h",))

    def leased(self, leases: list[Lease]) -> None:
        raise AssertionError

    def leased_again(self, older: list[Lease]) -> None:
        raise AssertionError

    def found_nothing(self) -> None:
        self.found.release()


def leaser_on(link: Link, events: LeaserEvents, *, poll: float = POLL, procs: int = 1) -> Leaser:
    return Leaser(
        link,
        owner=uuid4(),
        lease_for=60,
        poll=poll,
        procs=procs,
        queues={"a": 1},
        book=LeaseBook(lease_for=60),
        events=events,
        voice=Voice(is_wanted=True),
        metrics=Metrics(),
        hooks=Hooks(),
    )


def ahead(*, seconds: float | None = None, limited: tuple[str, ...] = ()) -> upkeep.Ahead:
    return upkeep.Ahead(seconds, list(limited), datetime.now(UTC))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a turn takes on a busy machine, the next look at everything may come with the next poll."""
    monkeypatch.setattr(watermark, "FULL_SCAN_LEAST", 0.0)
    monkeypatch.setattr(watermark, "FULL_SCAN_SHARE", 0.0)


async def looks(link: ScriptedLink, count: int) -> None:
    """Let a leaser look at everything so many times, and find nothing."""
    events = Idle()
    leaser = leaser_on(link, events)
    leaser.start()
    async with asyncio.timeout(60):
        for _ in range(count):
            await events.found.acquire()
    await leaser.stop()


def test_an_idle_leaser_asks_one_thing_at_each_poll() -> None:
    link = ScriptedLink({"next_due": ahead, "_lease": list})
    asyncio.run(looks(link, 4))
    assert link.asked["_lease"] == 1
    # Once more at the start, to know which queues have limits.
    assert link.asked["next_due"] in (5, 6)


def test_from_a_queue_with_limits_it_tries_to_lease_at_each_poll() -> None:
    link = ScriptedLink({"next_due": lambda: ahead(limited=("a",)), "_lease": list, "_lease_limited": list})
    asyncio.run(looks(link, 3))
    assert link.asked["_lease_limited"] >= 3


def test_what_a_poll_finds_due_is_leased_at_once() -> None:
    answers = [ahead(), ahead(), ahead(seconds=-1.0)]
    link = ScriptedLink({"next_due": lambda: answers.pop(0) if answers else ahead(), "_lease": list})
    asyncio.run(looks(link, 3))
    assert link.asked["_lease"] >= 2


class Roomy(Idle):
    """With room for ten jobs; tells when some have come."""

    def __init__(self) -> None:
        super().__init__()
        self.came = asyncio.Event()

    def wants(self) -> int:
        return 10

    def leased(self, leases: list[Lease]) -> None:
        self.came.set()


def a_lease(id: int) -> Lease:
    return Lease(
        id=id,
        lease_no=1,
        queue="a",
        handler="h",
        priority=2,
        attempt=1,
        max_attempts=5,
        crashes=0,
        payload="{}",
        scheduled_at=datetime.now(UTC),
        waited=0.0,
        sent_at=0.0,
    )


def test_who_has_taken_all_there_was_does_not_look_again_for_every_slot_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watermark, "FULL_SCAN_LEAST", 60.0)
    monkeypatch.setattr(leasing, "DRY_FOR", 0.2)
    scans: list[tuple[float, list[Lease]]] = []
    looked_again = asyncio.Event()

    def scan() -> list[Lease]:
        given = [[a_lease(n) for n in range(10)], [a_lease(10)], []][min(2, len(scans))]
        scans.append((clock.now(), given))
        if len(scans) == 3:
            looked_again.set()
        return given

    async def scenario() -> None:
        events = Roomy()
        leaser = leaser_on(ScriptedLink({"next_due": ahead, "_lease": scan}), events, poll=3600)
        leaser.start()
        while len(scans) < 2:  # ten of ten: there may be more, so it looks at once
            await events.came.wait()
            events.came.clear()
        for _ in range(3):
            leaser.room()
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await looked_again.wait()
        await leaser.stop()

    asyncio.run(scenario())
    assert len(scans) == 3
    assert scans[2][0] - scans[1][0] >= 0.2


def test_a_notification_is_followed_at_once_however_dry_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "FULL_SCAN_LEAST", 60.0)
    monkeypatch.setattr(leasing, "DRY_FOR", 3600.0)

    async def scenario() -> None:
        events = Roomy()
        leaser = leaser_on(ScriptedLink({"next_due": ahead, "_lease": lambda: [a_lease(1)]}), events, poll=3600)
        leaser.start()
        async with asyncio.timeout(30):
            for _ in range(3):
                await events.came.wait()
                events.came.clear()
                leaser.hint(queue="a", look_back=0.0)
        await leaser.stop()

    asyncio.run(scenario())


def test_a_job_that_another_host_gives_back_is_found_although_it_has_been_due_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while the cost of the last look at everything forbids the next one."""
    began = datetime.now(UTC)
    starts: asyncio.Queue[datetime | None] = asyncio.Queue()

    class Watched(ScriptedLink):
        async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            for entry in kwargs.get("entries", ()):
                if entry.priority == 2:
                    starts.put_nowait(entry.after_at)
            return await super().call(function, *args, **kwargs)

    async def scenario() -> tuple[datetime | None, datetime | None]:
        events = Idle()
        leaser = leaser_on(Watched({"next_due": ahead, "_lease": list}), events, poll=3600)
        leaser.start()
        async with asyncio.timeout(30):
            await events.found.acquire()
            assert await starts.get() is None
            leaser._marks.full_scan_done(at=clock.now(), took=3600.0)
            leaser._marks.found_none(["a"], at=datetime.now(UTC))
            leaser.hint(queue="a", look_back=0.0)
            marked = await starts.get()
            leaser.hint(queue="a", look_back=600.0)
            lowered = await starts.get()
        await leaser.stop()
        return marked, lowered

    monkeypatch.setattr(watermark, "FULL_SCAN_SHARE", 100.0)
    marked, lowered = asyncio.run(scenario())
    assert marked is not None and marked >= began - timedelta(seconds=1)
    assert lowered is not None and began - timedelta(seconds=601) <= lowered < began - timedelta(seconds=500)


def test_what_it_hears_of_during_a_lease_it_looks_for_in_the_next_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[datetime | None] = []
    heard: list[bool] = []
    given = a_lease(1)

    class Hinting(ScriptedLink):
        async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            starts.extend(entry.after_at for entry in kwargs.get("entries", ()) if entry.priority == given.priority)
            if len(starts) == 2 and not heard:
                heard.append(True)
                leaser.hint(queue="a", look_back=600.0)
            return await super().call(function, *args, **kwargs)

    monkeypatch.setattr(watermark, "FULL_SCAN_LEAST", 3600.0)
    events = Roomy()
    leaser = leaser_on(Hinting({"next_due": ahead, "_lease": lambda: [given]}), events, poll=3600)

    async def scenario() -> None:
        leaser.start()
        async with asyncio.timeout(30):
            while len(starts) < 4:
                await events.came.wait()
                events.came.clear()
                leaser._wake.set()
        await leaser.stop()

    asyncio.run(scenario())
    full, before, lowered, after = starts[:4]
    assert full is None and before is not None and lowered is not None and after is not None
    assert lowered < given.scheduled_at - timedelta(seconds=500), "the lease that was under way may have passed it"
    assert before == after == given.scheduled_at - watermark.LOOK_BACK, "once it has looked there, it goes on as before"


@pytest.mark.parametrize(("procs", "is_at_once"), [(3, True), (2, False)])
def test_after_more_jobs_than_the_host_can_start_a_notification_waits_for_more(
    monkeypatch: pytest.MonkeyPatch, procs: int, *, is_at_once: bool
) -> None:
    monkeypatch.setattr(watermark, "FULL_SCAN_LEAST", 60.0)
    monkeypatch.setattr(leasing, "AFTER_NOTIFICATION", 3600.0)
    monkeypatch.setattr(leasing, "DRY_FOR", 0.2)
    scanned: list[float] = []

    def scan() -> list[Lease]:
        scanned.append(clock.now())
        return [a_lease(1), a_lease(2), a_lease(3)]

    async def scenario() -> None:
        events = Roomy()
        link = ScriptedLink({"next_due": ahead, "_lease": scan})
        leaser = leaser_on(link, events, poll=3600, procs=procs)
        leaser.start()
        async with asyncio.timeout(30):
            await events.came.wait()
            events.came.clear()
            leaser.hint(queue="a", look_back=0.0)
            await events.came.wait()
        await leaser.stop()

    asyncio.run(scenario())
    assert (scanned[1] - scanned[0] < 0.2) == is_at_once


@pytest.mark.parametrize(
    ("found", "asked"), [([0], 1), ([100], 1), ([5000, 5000, 4000, 20, 5000], 4), ([5000, 0, 5000], 2)]
)
def test_jobs_of_unknown_handlers_are_held_as_long_as_the_head_is_full_of_them(found: list[int], asked: int) -> None:
    answers = list(found)
    link = ScriptedLink({"other_supervisors": list, "hold_unknown": lambda: answers.pop(0), "release_held": lambda: 0})

    async def nothing() -> int:
        return 0

    async def swept() -> None:
        return None

    async def scenario() -> None:
        me = identity.own_row(procs=1, queues=["a"], handlers=["h"], lease=60)
        book, hooks = LeaseBook(lease_for=60), Hooks()
        rescuer = Rescuer(
            link,
            me=me,
            heartbeat=Heartbeat("", owner=me.owner, lease_for=60, book=book, on_verdicts=print, hooks=hooks),
            release_unknown=nothing,
            look_everywhere=lambda: None,
            sweep=swept,
            voice=Voice(is_wanted=True),
            hooks=hooks,
        )
        await rescuer.look_around()

    asyncio.run(scenario())
    assert link.asked["hold_unknown"] == asked
