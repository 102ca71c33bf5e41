"""What it costs to watch the memory and CPU time of eight running jobs, on a clock that is faster than the real one."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final, cast

from tasuki_mp import wire
from tasuki_mp.job import Lease
from tasuki_mp.limits import NONE, Limits
from tasuki_mp.memory import ceilings
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.child import Child
from tasuki_mp.supervisor.host import Host
from tasuki_mp.supervisor.probe import Probe
from tasuki_mp.supervisor.sampler import Sampler
from tasuki_mp.supervisor.slot import Slot

Promise = Callable[[str, str, object, bool], None]

SLOTS: Final = 8
SECONDS: Final = 30
"""On the made-up clock."""
ROUNDS: Final = 5
TICK: Final = 0.025
WITHIN: Final = 0.005
"""Of a core."""


class CountingProbe(Probe):
    """The real /proc; says how often a job's process was looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def memory(self, pid: int) -> int | None:
        self.looks += 1
        return super().memory(pid)


def sampler(promise: Promise) -> None:
    """Its CPU time a second, for jobs without limits and for jobs near theirs."""
    asyncio.run(_measure(promise))


async def _measure(promise: Promise) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(_child(slot)) for slot in range(SLOTS)]
        for what, limits in (("without limits", NONE), ("near their limits", Limits(memory=1 << 20))):
            probe = CountingProbe()
            seconds = statistics.median(_watch(children, limits, probe) for _ in range(ROUNDS)) / SECONDS
            looks = probe.looks / SECONDS / ROUNDS
            shown = f"{seconds:.2%}, {looks:.0f} looks a second, {seconds * 1e6 / looks:.0f} µs each"
            promise(f"{SLOTS} jobs {what}, of a core", f"≤ {WITHIN:.1%}", shown, seconds <= WITHIN)


def _watch(children: list[Child], limits: Limits, probe: Probe) -> float:
    """CPU seconds of this thread for so many seconds of the clock."""
    slots = cast("list[Slot]", [SimpleNamespace(children={child}, child=child) for child in children])
    now = clock.now()
    host = Host(probe, limit=1 << 50, ceilings=ceilings(), stop=_never, run=_never)
    watcher = Sampler(probe, host, slots=slots, limits_of=lambda _: limits, stop=_never, run=lambda work: work.close())
    for child in children:
        watcher.meet(child)
    started = time.thread_time()
    for tick in range(round(SECONDS / TICK)):
        watcher.tick(now + 1 + tick * TICK)
    return time.thread_time() - started


def _never(*_: object) -> None:
    raise AssertionError("nobody is over any limit")


@contextmanager
def _child(slot: int) -> Iterator[Child]:
    """A process that stands for a job's, and what a supervisor has of it."""
    program = "import sys; from tasuki_mp.child import main; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    page = [0] * wire.PAGE_WORDS
    job, _ = pair = socket.socketpair()
    executor = cast("ProcessPoolExecutor", None)
    child = Child(slot, executor, Future[None](), job, job, job, cast("Any", page))
    child.pid = process.pid
    lease = _lease(slot + 1)
    child.inflight[lease.key] = lease
    page[wire.PAGE_JOB], page[wire.PAGE_LEASE_NO] = lease.key
    page[wire.PAGE_STARTED] = round(clock.now() * 1e9)
    try:
        yield child
    finally:
        process.communicate()
        for sock in pair:
            sock.close()


def _lease(job: int) -> Lease:
    return Lease(
        id=job,
        lease_no=1,
        queue="default",
        handler="work",
        priority=2,
        attempt=1,
        max_attempts=1,
        crashes=0,
        payload="{}",
        scheduled_at=datetime.now(UTC),
        waited=0.0,
    )
