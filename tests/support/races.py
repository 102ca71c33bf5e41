"""Requests to stop a job, sent at about the moment when it ends by itself: `python -m tests.support.races --asks 10000`.

One slot with a real child and no database. Behind each job that is meant waits another one that is not, so a signal or a
kill that comes too late has somebody to hit. The moment is moved until about one request in fifty still comes in time.
The last line is a JSON object; the exit code is 1 if any job ended in a way that was not meant for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from tasuki_mp import wire
from tasuki_mp.child.application import AppSpec
from tasuki_mp.child.main import Setting
from tasuki_mp.followups import Spool
from tasuki_mp.job import Lease
from tasuki_mp.outcome import CancelObeyed, Outcome, Returned
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.birth import Births
from tasuki_mp.supervisor.child import Child, Death, Key, Nursery
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.slot import Slot

Request = Callable[[Slot, Child, Key], Awaitable[object]]

EARLIER, LATER = 0.000_002, 0.000_100
"""Seconds by which the request comes earlier after a miss, later after a hit: at rest, one in fifty hits."""


class Races:
    """Sends jobs in pairs and stops the first of each; takes note of how all of them end."""

    def __init__(self) -> None:
        self.outcomes: dict[Key, Outcome] = {}
        self.wrong: list[str] = []
        self._asked: set[Key] = set()
        self._turns: dict[Key, int] = {}
        self._ready = asyncio.Event()
        self._length = 0
        self._moment = 0.0

    # ── what the slot tells ───────────────────────────────────────────────────────────────────────────────────────────

    def slot_ready(self, slot: Slot, hello: wire.Hello) -> None:
        self._ready.set()

    def job_finished(
        self, slot: Slot, child: Child, lease: Lease, frame: wire.Finished, output: str, spool: Spool | None
    ) -> None:
        self._ended(lease.key, frame.outcome)

    def job_ended(self, slot: Slot, child: Child, lease: Lease, outcome: Outcome, ran_for: float, output: str) -> None:
        self._ended(lease.key, outcome)

    def jobs_returned(self, leases: list[Lease]) -> None:
        """Their child was interrupted or killed: `_finish` sees to them."""

    def keep_now(self, key: Key) -> None: ...
    def child_died(
        self, slot: Slot, child: Child, death: Death, lease: Lease | None, *, was_expected: bool
    ) -> None: ...

    def frames_read(self, child: Child) -> float:
        return 0.0

    def start_failed(self, slot: Slot, error: Exception, failures: int) -> None:
        raise error

    def failed(self, error: BaseException) -> None:
        self.wrong.append(repr(error))

    def _ended(self, key: Key, outcome: Outcome) -> None:
        if key in self.outcomes:
            self.wrong.append(f"{key} ended twice: {self.outcomes[key]}, {outcome}")
        match outcome:
            case Returned(str(text)) if text == str(self._turns[key]):
                pass
            case CancelObeyed() if key in self._asked:
                pass
            case _:
                self.wrong.append(f"{key} ended as {outcome}, {'asked' if key in self._asked else 'not asked'}")
        self.outcomes[key] = outcome

    # ── a race ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, slot: Slot, count: int, request: Request, *, turns: int) -> Counter[str]:
        """That many races against jobs that take so many turns of a loop; how those ended."""
        self._length, self._moment = turns, 50e-9 * turns
        ends: Counter[str] = Counter()
        for _ in range(count):
            was_hit = await self._one(slot, request)
            self._moment = max(0.0, self._moment + (LATER if was_hit else -EARLIER) * random.random() * 2)
            ends["stopped" if was_hit else "ended by itself"] += 1
        return ends

    async def _one(self, slot: Slot, request: Request) -> bool:
        """Whether the request came in time."""
        child = await self._child(slot)
        meant, bystander = self._lease(), self._lease()
        for lease in (meant, bystander):
            assert child.send(lease, None)
        await _until(lambda: child.entered_at(meant.key) is not None or meant.key in self.outcomes)
        entered = child.entered_at(meant.key) or clock.now()
        while clock.now() < entered + self._moment:
            pass
        self._asked.add(meant.key)
        while meant.key not in self.outcomes:
            await request(slot, child, meant.key)
            await asyncio.sleep(0)
        await self._finish(slot, bystander)
        return isinstance(self.outcomes[meant.key], CancelObeyed)

    async def _finish(self, slot: Slot, lease: Lease) -> None:
        """See the other job through to its end, in another child if need be."""
        while lease.key not in self.outcomes:
            child = await self._child(slot)
            if lease.key not in self.outcomes and not any(lease.key in one.inflight for one in slot.children):
                child.send(lease, None)
            await _until(lambda: lease.key in self.outcomes or slot.child is None)

    async def _child(self, slot: Slot) -> Child:
        while slot.child is None:
            self._ready.clear()
            await self._ready.wait()
        return slot.child

    def _lease(self) -> Lease:
        turns = random.randrange(self._length, self._length * 11 // 10)
        lease = Lease(
            id=len(self._turns) + 1,
            lease_no=1,
            queue="default",
            handler="work",
            priority=2,
            attempt=1,
            max_attempts=1,
            crashes=0,
            payload=json.dumps({"turns": turns}),
            scheduled_at=datetime.now(UTC),
            waited=0.0,
        )
        self._turns[lease.key] = turns
        return lease


async def _until(fact: Callable[[], bool]) -> None:
    while not fact():
        await asyncio.sleep(0)


async def ask(slot: Slot, child: Child, key: Key) -> None:
    """As a cancel begins: the page, and a signal."""
    child.ask_stop(key, "cancel")
    if not child.was_interrupted("cancel"):
        slot.interrupt(child)


async def kill(slot: Slot, child: Child, key: Key) -> None:
    """As it ends."""
    await slot.stop_job(child, key, CancelObeyed())


async def race(asks: int, kills: int) -> dict[str, Any]:
    """The races, and what came of them."""
    races = Races()
    spec = AppSpec("tests.support.stubborn:app", os.getcwd(), is_preloaded=True)
    nursery = Nursery(spec, lambda _: Setting(nofile=1024))
    births = Births(nursery)
    slot = Slot(0, births, races, lambda *_: None, Hooks())
    slot.start()
    found = {
        "asks": await races.run(slot, asks, ask, turns=3000),
        "kills": await races.run(slot, kills, kill, turns=30_000),
    }
    await slot.stop()
    await births.stop()
    return {**found, "jobs": len(races.outcomes), "wrong": races.wrong[:10]}


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.races")
    parser.add_argument("--asks", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=2000)
    given = parser.parse_args()
    found = asyncio.run(race(given.asks, given.kills))
    print(json.dumps(found), flush=True)
    os._exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
