"""CPU time of everything that takes part: the program's processes, and those of the server."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts.harness import host

LOOK_EVERY: Final = 0.25


def program_cpu(tag: str) -> float:
    """Seconds that the living processes with this tag have used, and their children that have ended."""
    return sum(_cpu(each.pid) for each in host.tagged(tag))


def server_cpu(conn: psycopg.Connection[Any]) -> float:
    """Seconds that the server has used: the postmaster, all of its processes, and those that have ended."""
    backend = host.process(conn.info.backend_pid)
    if backend is None:
        raise RuntimeError("the server runs on another machine: its CPU time can't be read")
    while True:  # one that ends meanwhile would count twice, or not at all
        pids = {each.pid for each in host.children_of(backend.parent)}
        used = _cpu(backend.parent) + sum(map(_cpu, pids))
        if pids == {each.pid for each in host.children_of(backend.parent)}:
            return used


def _cpu(pid: int) -> float:
    try:
        return host.cpu_seconds(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # ended meanwhile, and is counted with its parent


class Followed:
    """The CPU time of one supervisor, its forkserver and its slots until they end; `close` before asking for it.

    Looks now and then from a thread of its own, since nobody tells what a process that has ended had used. What is used
    within the last quarter of a second is not seen. With a connection, the server's is looked at too.
    """

    def __init__(self, supervisor: int, slots: int, server: psycopg.Connection[Any] | None = None) -> None:
        self._supervisor = supervisor
        self._slots = slots
        self._server = server
        self._pids = [supervisor]
        self._used: dict[int, float] = {}
        self._looks: list[tuple[float, float]] = []
        """Seconds of the wall clock, and CPU seconds of the program and the server until then."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="CPU times")
        self._thread.start()

    @property
    def seconds(self) -> float:
        return sum(self._used.values())

    def between(self, begin: float, end: float) -> float:
        """CPU seconds of program and server between two instants of the wall clock, as if evenly used between looks."""
        return self._until(end) - self._until(begin)

    def _until(self, instant: float) -> float:
        if not self._looks[0][0] <= instant <= self._looks[-1][0]:
            raise RuntimeError("there was no look before, or none after that")
        after = bisect.bisect_left(self._looks, (instant, 0.0))
        (t1, used1), (t2, used2) = self._looks[max(0, after - 1)], self._looks[after]
        return used1 if t1 == t2 else used1 + (used2 - used1) * (instant - t1) / (t2 - t1)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        if len(self._pids) < self._slots + 2:
            forkserver = host.forkserver_of(self._supervisor)
            self._pids = [self._supervisor, *([forkserver] if forkserver else []), *host.slots_of(self._supervisor)]
        for pid in self._pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended: the last time stands
                self._used[pid] = host.own_cpu_seconds(pid)
        if self._server is not None:
            self._looks.append((time.time(), self.seconds + server_cpu(self._server)))


def memory(pid: int) -> dict[str, float]:
    """MiB by the names of smaps_rollup, and `Private`: what no other process shares."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) / 1024
    return {**found, "Private": found["Private_Clean"] + found["Private_Dirty"]}
