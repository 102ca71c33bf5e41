"""Ending tasks and waiting for events, where cancellation and result come together."""

from __future__ import annotations

import asyncio

import pytest

from tasuki_mp.supervisor import tasks


def test_a_task_that_swallows_a_cancellation_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_CANCEL_AGAIN", 0.01)

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        return "never"

    async def main() -> bool:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await tasks.end(task)
        return task.cancelled()

    assert asyncio.run(main())


def test_what_a_task_raised_is_told_to_whoever_watches_it() -> None:
    told: list[BaseException] = []

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was ended")

    async def main() -> None:
        for work in (failing(), asyncio.Event().wait()):
            task = asyncio.create_task(work)
            tasks.watch(task, told.append)
            await asyncio.sleep(0)
            await tasks.end(task)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert [str(error) for error in told] == ["while it was ended"], "a cancellation is no failure"


def test_a_cancellation_that_comes_together_with_the_event_is_not_swallowed() -> None:
    async def main() -> bool:
        event = asyncio.Event()

        async def wait_and_go_on() -> None:
            await tasks.wait_at_most(event, 60)
            await asyncio.Event().wait()

        task = asyncio.create_task(wait_and_go_on())
        await asyncio.sleep(0)
        event.set()
        task.cancel()
        await asyncio.wait([task], timeout=60)
        return task.cancelled()

    assert asyncio.run(main())


def test_waiting_ends_with_the_event_or_in_time() -> None:
    async def main() -> tuple[bool, bool]:
        event = asyncio.Event()
        late = await tasks.wait_at_most(event, 0.001)
        event.set()
        return late, await tasks.wait_at_most(event, 60)

    assert asyncio.run(main()) == (False, True)


def test_an_errand_that_fails_is_told_and_the_others_are_waited_for() -> None:
    told: list[BaseException] = []
    done: list[str] = []

    async def main() -> None:
        errands = tasks.Errands(told.append)

        async def failing() -> None:
            errands.run(late())
            raise ValueError("on its way")

        async def late() -> None:
            await asyncio.sleep(0)
            done.append("late")

        errands.run(failing())
        await errands.settled()
        errands.run(asyncio.Event().wait())
        await asyncio.sleep(0)
        await errands.end()
        await errands.settled()

    asyncio.run(main())
    assert [str(error) for error in told] == ["on its way"], "a cancellation is no failure"
    assert done == ["late"]
