"""Answers the question what this host is doing, slot by slot: the kind "slots" of commands, for `tasuki-mp top`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from tasuki_mp.store.commands import Command, SlotView, SupervisorView
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.commands import Answer
from tasuki_mp.supervisor.slot import Slot

_PARTS: Final = {
    "Private_Clean": "private",
    "Private_Dirty": "private",
    "Shared_Clean": "shared",
    "Shared_Dirty": "shared",
}


def overview(slots: Callable[[], list[Slot]], finished: Callable[[], int]) -> Answer:
    """What answers that question about these slots; `finished` counts the attempts that have ended here."""

    async def answer(_command: Command) -> SupervisorView:
        views, pids = [], []
        for slot in slots():
            child = slot.child or next(iter(slot.children), None)
            running = None if child is None else child.running()
            views.append(
                SlotView(
                    slot=slot.index,
                    pid=None if child is None else child.pid,
                    job_id=None if running is None else running[0].id,
                    handler=None if running is None else running[0].handler,
                    queue=None if running is None else running[0].queue,
                    attempt=None if running is None else running[0].attempt,
                    ran_for=None if running is None else round(clock.now() - running[1], 3),
                    waiting=0 if child is None else max(0, len(child.inflight) - 1),
                    jobs_run=0 if child is None else child.jobs_run,
                )
            )
            pids.append(None if child is None else child.pid)
        # Reading page tables takes milliseconds for each child: not on the loop.
        measured = await asyncio.to_thread(lambda: [_measure(pid) for pid in pids])
        return SupervisorView(
            at=clock.now(),
            finished=finished(),
            slots=[
                msgspec.structs.replace(view, cpu=cpu, private=private, shared=shared)
                for view, (cpu, private, shared) in zip(views, measured, strict=True)
            ],
        )

    return answer


def _measure(pid: int | None) -> tuple[float | None, int | None, int | None]:
    """CPU seconds so far, bytes of its own, bytes shared with others; None for what can't be read."""
    if pid is None:
        return None, None, None
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            cpu = int(file.read().split()[0]) / 1e9
        sizes = {"private": 0, "shared": 0}
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in _PARTS:
                    sizes[_PARTS[name]] += int(rest.split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # it has just died, or the kernel does not say
        return None, None, None
    return cpu, sizes["private"], sizes["shared"]
