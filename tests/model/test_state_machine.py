"""Two supervisors do whatever they please, in any order; Postgres and the ledger agree after every step.

`TASUKI_MODEL_EXAMPLES=2000` looks longer, and elsewhere each time.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tasuki_mp.job import Lease
from tasuki_mp.outcome import SettledKind
from tests.model.conftest import NewWorld
from tests.model.ledger import LEASE_FOR
from tests.model.world import World

LONGER = os.environ.get("TASUKI_MODEL_EXAMPLES")
FAR = 1e7
"""Seconds that no number of short steps adds up to."""

WHO = st.sampled_from([0, 1])
KINDS: st.SearchStrategy[SettledKind] = st.sampled_from(
    ["retry", "retry", "snooze", "release", "completed", "failed", "canceled"]
)
MAX_ATTEMPTS = st.sampled_from([3, 5, 2, 1])
DELAYS = st.sampled_from([0.0, FAR])


class TwoSupervisors(RuleBasedStateMachine):
    """Each rule is a step of the protocol, or something that goes wrong on its way."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @initialize(shapes=st.lists(st.tuples(st.integers(0, 3), MAX_ATTEMPTS), min_size=2, max_size=4))
    def begin(self, shapes: list[tuple[int, int]]) -> None:
        for priority, max_attempts in shapes:
            self.world.enqueue(priority=priority, max_attempts=max_attempts)

    @rule(priority=st.integers(0, 3), max_attempts=MAX_ATTEMPTS, delay=st.sampled_from([0.0, 0.0, FAR]))
    def enqueue(self, priority: int, max_attempts: int, delay: float) -> None:
        self.world.enqueue(priority=priority, max_attempts=max_attempts, delay=delay)

    @precondition(lambda self: self.world.ledger.jobs)
    @rule(who=WHO, limit=st.integers(1, 3), is_reply_lost=st.sampled_from([False, False, False, True]))
    def lease(self, who: int, limit: int, is_reply_lost: bool) -> None:
        self.world.lease(who, limit, is_reply_lost=is_reply_lost)

    @precondition(lambda self: any(self.world.books))
    @rule(who=WHO, is_forgetting=st.booleans())
    def heartbeat(self, who: int, is_forgetting: bool) -> None:
        self.world.beat(who, is_forgetting=is_forgetting)

    @precondition(lambda self: any(self.world.books))
    @rule(data=st.data(), delay=DELAYS, is_crash=st.booleans())
    def finish(self, data: st.DataObject, delay: float, is_crash: bool) -> None:
        self._finish(data, delay, is_crash=is_crash, is_reply_lost=False)

    @precondition(lambda self: any(self.world.books))
    @rule(data=st.data(), delay=DELAYS, is_crash=st.booleans())
    def finish_and_lose_the_reply(self, data: st.DataObject, delay: float, is_crash: bool) -> None:
        self._finish(data, delay, is_crash=is_crash, is_reply_lost=True)

    def _finish(self, data: st.DataObject, delay: float, *, is_crash: bool, is_reply_lost: bool) -> None:
        who = data.draw(st.sampled_from([n for n in (0, 1) if self.world.books[n]]), label="who")
        keys = sorted(self.world.books[who])
        some = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True), label="leases")
        ends = [(self.world.books[who][key], data.draw(KINDS, label="kind")) for key in some]
        self.world.finish(who, ends, delay=delay, is_crash=is_crash, is_reply_lost=is_reply_lost)

    @precondition(lambda self: any(self.world.books))
    @rule(data=st.data(), kind=KINDS)
    def finish_what_is_another_s(self, data: st.DataObject, kind: SettledKind) -> None:
        self.world.finish(1 - (lease := self._any_lease(data))[0], [(lease[1], kind)], is_reply_lost=True)

    @precondition(lambda self: any(self.world.books))
    @rule(data=st.data())
    def retry_without_an_attempt_left(self, data: st.DataObject) -> None:
        self.world.retry_without_an_attempt_left(*self._any_lease(data))

    @precondition(lambda self: self.world.ledger.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from([*sorted(self.world.ledger.jobs), 0]), label="job"))

    @precondition(lambda self: self.world.ledger.jobs)
    @rule(seconds=st.sampled_from([LEASE_FOR * 0.6, LEASE_FOR * 1.2, 2 * FAR]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self._is_any_running())
    @rule(who=WHO, is_gone=st.sampled_from([False, False, True]))
    def rescue(self, who: int, is_gone: bool) -> None:
        self.world.rescue(who, is_gone=is_gone)

    @precondition(lambda self: self._is_any_running())
    @rule(who=WHO)
    def release_unknown(self, who: int) -> None:
        self.world.release_unknown(who)

    @precondition(lambda self: len(self.world.ledger.jobs) % 3 == 2)  # now and then
    @rule(is_paused=st.sampled_from([True, False, False, False]))
    def pause(self, is_paused: bool) -> None:
        self.world.pause(is_paused=is_paused)

    @precondition(lambda self: self.world.ledger.jobs)
    @rule(data=st.data())
    def meddle(self, data: st.DataObject) -> None:
        running = [job.id for job in self.world.ledger.jobs.values() if job.status == "running"]
        if running:
            self.world.meddle(data.draw(st.sampled_from(running), label="job"))

    @invariant()
    def both_agree(self) -> None:
        self.world.compare()

    def teardown(self) -> None:
        self.world.check()  # the audit remembers every step: reading it once is enough

    def _is_any_running(self) -> bool:
        return any(job.status == "running" for job in self.world.ledger.jobs.values())

    def _any_lease(self, data: st.DataObject) -> tuple[int, Lease]:
        who: Any = data.draw(st.sampled_from([n for n in (0, 1) if self.world.books[n]]), label="who")
        key = data.draw(st.sampled_from(sorted(self.world.books[who])), label="lease")
        return who, self.world.books[who][key]


def test_postgres_and_the_ledger_agree(new_world: NewWorld) -> None:
    run_state_machine_as_test(
        lambda: TwoSupervisors(new_world()),
        settings=settings(
            max_examples=int(LONGER or 80),
            stateful_step_count=50,
            derandomize=not LONGER,
            database=None,
            deadline=None,
            print_blob=bool(LONGER),
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
