"""Where the tasks of a loop wait, as `tasuki-mp stack` shows it."""

from __future__ import annotations

import asyncio

from tasuki_mp.child.awaits import LONGEST, MOST_FRAMES, MOST_TASKS, awaits


async def deep(levels: int) -> None:
    await (deep(levels - 1) if levels else asyncio.Event().wait())


def told(*depths: int) -> str:
    """What is said of a handler that runs, beside tasks that wait so deep."""

    async def handler() -> str:
        main = asyncio.current_task()
        assert main is not None
        tasks = [asyncio.create_task(deep(depth)) for depth in depths]
        await asyncio.sleep(0)
        itself = deep(0)
        text = awaits(main, itself)
        itself.close()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return text

    return asyncio.run(handler())


def test_each_task_is_shown_down_to_what_it_waits_for() -> None:
    title, *frames = told(3).splitlines()
    assert title.startswith("Task 'Task-")
    assert [frame.rpartition(" ")[2] for frame in frames] == ["wait", *["deep"] * 4]


def test_many_and_deep_ones_are_cut() -> None:
    text = told(*[1] * (MOST_TASKS + 7))
    assert text.count("waits (most recent await first)") == MOST_TASKS
    assert text.endswith("and 7 more tasks\n")
    assert told(2 * MOST_FRAMES).count("in deep") == MOST_FRAMES
    assert len(told(*[2 * MOST_FRAMES] * MOST_TASKS)) == LONGEST
