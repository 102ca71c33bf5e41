"""Who is asked, who is killed and as what it ends, with slots and children that only take note."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

from tasuki_mp.outcome import CancelObeyed, Interrupted, Outcome
from tasuki_mp.supervisor import stopping
from tasuki_mp.supervisor.stopping import Stopping

Key = tuple[int, int]
KEY = (7, 1)
FOR_EVER = 3600.0


class Stage:
    """A slot, its child and the dispatcher in one; one job."""

    def __init__(self, *, hits: tuple[bool | Exception, ...] = (True,)) -> None:
        self.inflight: set[Key] = {KEY}
        self.waiting: set[Key] = set()
        self.asked: list[str] = []
        self.signals = 0
        self.kills: list[Outcome] = []
        self.settled: list[Outcome] = []
        self.is_interrupted = False
        self.signalled = asyncio.Event()
        self._hits = list(hits)
        part: Any = self
        self.errors: list[BaseException] = []
        self.stopping = Stopping(
            part, settle=lambda _, outcome: self.settled.append(outcome), failed=self.errors.append
        )

    # the dispatcher
    def forget(self, key: Key) -> object | None:
        if key not in self.waiting:
            return None
        self.waiting.remove(key)
        return SimpleNamespace(key=key)

    def child_running(self, key: Key) -> tuple[Any, Any] | None:
        return (self, self) if key in self.inflight else None

    # the slot
    def interrupt(self, child: object) -> None:
        self.signals += 1
        self.signalled.set()

    async def stop_job(self, child: object, key: Key, outcome: Outcome) -> bool:
        is_hit = self._hits.pop(0)
        if isinstance(is_hit, Exception):
            raise is_hit
        if is_hit:
            self.kills.append(outcome)
        return is_hit

    # the child
    def ask_stop(self, key: Key, reason: str) -> None:
        self.asked.append(reason)

    def was_interrupted(self, reason: str) -> bool:
        return self.is_interrupted

    # what happens
    def end(self) -> None:
        """The job ends."""
        self.inflight.discard(KEY)
        self.stopping.ended(KEY)

    def go_back(self) -> None:
        """Its child dies before the job began."""
        self.inflight.discard(KEY)
        self.waiting.add(KEY)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 45))


def test_what_ends_by_itself_after_it_was_asked_is_not_killed() -> None:
    async def story() -> None:
        stage = Stage()
        stage.stopping.cancel(KEY, grace=FOR_EVER)
        stage.stopping.cancel(KEY, grace=FOR_EVER)  # said again at each heartbeat
        await stage.signalled.wait()
        stage.end()
        await stage.stopping.settled()
        assert (stage.signals, stage.kills, set(stage.asked)) == (1, [], {"cancel"})

    run(story())


def test_a_handler_that_was_interrupted_gets_no_further_signal() -> None:
    async def story() -> None:
        stage = Stage()
        stage.is_interrupted = True
        stage.stopping.cancel(KEY, grace=3 * stopping.FIRST_PAUSE)
        await stage.stopping.settled()
        assert (stage.signals, stage.kills) == (0, [CancelObeyed()])
        assert len(stage.asked) > 1

    run(story())


def test_without_a_grace_nobody_is_asked() -> None:
    async def story() -> None:
        stage = Stage(hits=(False, False, True))
        stage.stopping.cancel(KEY, grace=0)
        await stage.stopping.settled()
        assert (stage.asked, stage.kills) == ([], [CancelObeyed()])

    run(story())


def test_what_is_killed_while_it_is_being_canceled_ends_as_canceled() -> None:
    async def story() -> None:
        stage = Stage()
        stage.stopping.cancel(KEY, grace=FOR_EVER)
        await stage.signalled.wait()
        stage.stopping.kill(KEY, Interrupted())
        stage.stopping.kill(KEY, Interrupted())
        await stage.stopping.settled()
        assert stage.kills == [CancelObeyed()]

    run(story())


def test_a_canceled_job_that_comes_back_unrun_is_not_run() -> None:
    async def story() -> None:
        stage = Stage()
        stage.stopping.cancel(KEY, grace=FOR_EVER)
        await stage.signalled.wait()
        stage.go_back()
        await stage.stopping.settled()
        assert (stage.kills, stage.settled) == ([], [CancelObeyed()])

    run(story())


def test_a_job_to_be_killed_that_comes_back_unrun_is_settled() -> None:
    async def story() -> None:
        stage = Stage(hits=(False, False, False))
        stage.stopping.kill(KEY, Interrupted())
        while len(cast("list[bool]", stage._hits)) > 1:
            await asyncio.sleep(0)
        stage.go_back()
        await stage.stopping.settled()
        assert (stage.kills, stage.settled) == ([], [Interrupted()])

    run(story())


def test_a_kill_that_fails_is_told_and_can_be_tried_again() -> None:
    async def story() -> None:
        error = ValueError("nobody foresaw it")
        stage = Stage(hits=(error, True))
        stage.stopping.kill(KEY, Interrupted())
        await stage.stopping.settled()
        assert stage.errors == [error]
        stage.stopping.kill(KEY, Interrupted())
        await stage.stopping.settled()
        assert (stage.errors, stage.kills) == ([error], [Interrupted()])

    run(story())
