"""The supervisor's own pulse: what has to be looked at again and again while jobs run, and now and then while none does."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tasuki_mp import logs
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.flow import Flow
from tasuki_mp.supervisor.vitals import Vitals

FLOOD_TICK: Final = 0.005
"""Seconds between two looks while a job writes without end: a core fills some 10 MiB of its output file meanwhile."""
QUICK_TICK: Final = 0.025
"""Seconds, while jobs are short: what waits behind one that turns out slow must not wait for long."""
LEISURELY_TICK: Final = 0.050
"""While jobs take twice as long and more: no look at their memory comes sooner, and a tick costs a third of a millisecond."""
IDLE_TICK: Final = 0.25


def pulse(job_seconds: float, *, is_flooded: bool) -> float:
    """Seconds from one look to the next while jobs run that take so long."""
    return FLOOD_TICK if is_flooded else min(LEISURELY_TICK, max(QUICK_TICK, job_seconds / 2))


class Ticker:
    """Ticks from `start` on. `lease` is the time in seconds for which jobs are leased."""

    def __init__(self, flow: Flow, vitals: Vitals, *, lease: float) -> None:
        self._flow = flow
        self._vitals = vitals
        self._lease = lease
        self._looked_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._looked_at = clock.now()
        self._task = asyncio.create_task(self._tick_for_ever(), name="ticker")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end(self._task)

    async def _tick_for_ever(self) -> None:
        flow, is_flooded = self._flow, False
        while True:
            if flow.dispatcher.is_idle:
                # A job that comes meanwhile may fill the memory before a pulse as slow as this one is over.
                flow.has_work.clear()
                await tasks.wait_at_most(flow.has_work, IDLE_TICK)
            if not flow.dispatcher.is_idle:
                await asyncio.sleep(pulse(flow.dispatcher.job_seconds, is_flooded=is_flooded))
            is_flooded = self._tick()

    def _tick(self) -> bool:
        """Look at what it is time to look at; whether a job writes more than can be left alone for long."""
        flow, now = self._flow, clock.now()
        if now - self._vitals.ticked_at > self._lease / 4:
            # We were frozen or the host slept: before anything else, ask which leases are still ours.
            seconds = round(now - self._vitals.ticked_at, 1)
            logs.event(logging.WARNING, "woke up after a standstill", seconds=seconds)
            flow.heartbeat.beat_now()
        self._vitals.ticked_at = now
        flow.dispatcher.tick()
        flow.memory.tick(now)
        slots = flow.dispatcher.slots
        if now - self._looked_at >= IDLE_TICK:
            self._looked_at = now
            flow.kill_untrusted()
            for slot in slots:
                slot.peek()
        has_flood = False
        for slot in slots:
            has_flood |= slot.shed()
        return has_flood
