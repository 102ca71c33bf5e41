"""What a job left behind in its child: processes, threads, descriptors, memory, a changed process.

Any may call for a fresh child. Each check costs about as much as it must: left processes are asked for with one system call
after every job that was long enough to start one, and what is cheap to put back is put back after each; the others, ten times
as dear, are looked at every 100 ms at most, or after a job longer than 10 ms. Threads, descriptors and memory can wait until
a fresh child stands ready, the rest can't.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

from tasuki_mp.child.clean import Baseline

LISTS: Final = "/proc/thread-self/children"
PROBE_EVERY_NS: Final = 100_000_000
PROBE_AFTER_NS: Final = 10_000_000
FORK_NS: Final = 30_000
"""A job that took less has not started a process: a fork or a spawn alone takes longer."""
FEW: Final = 16
"""Threads or descriptors above the baseline that are taken as a leak at once."""
FIRST_THREADS: Final = 32
"""That a handler's first job may leave: as many as a ThreadPoolExecutor starts at most if nobody says how many."""
FIRST_THREADS_A_UNIT: Final = 4
"""For jobs of many units: some native libraries, each with a pool of that size."""
FIRST_DESCRIPTORS: Final = 64
"""That a handler's first job may leave open."""
PROBES_IN_A_ROW: Final = 3
"""A count that grew at so many probes in a row is a leak, however small."""
GROWN: Final = 128 << 20
"""Bytes by which a child may grow beyond its baseline, or as much again as that if it is more."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Leak:
    """Watches one count. Its baseline is its lowest value, raised by what first runs and resources may keep."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._baseline: int | None = None
        self._last = 0
        self._grown = 0
        self._before: int | None = None
        self._room = 0

    def begin(self, count: int, room: int) -> None:
        """A handler runs for the first time: `room` is what its imports and caches may keep open until the next look."""
        if self._baseline is None:
            self._baseline = self._last = count
        self._before, self._room = count, room

    def keep(self, more: int) -> None:
        """So many more are no leak. What had leaked before them still is one."""
        self._last += more
        if self._baseline is not None:
            self._baseline += more
        if self._before is not None:
            self._before += more

    def look(self, count: int) -> str:
        """Why the child should retire, or an empty string."""
        if self._baseline is None:
            self._baseline = self._last = count
            return ""
        if self._before is not None:
            rise, self._before = max(0, count - self._before), None
            if rise > self._room:
                return f"leaked {rise} {self._what}"
            self.keep(rise)
        self._grown = self._grown + 1 if count > self._last else 0 if count < self._last else self._grown
        self._last = count
        self._baseline = min(self._baseline, count)
        above = count - self._baseline
        if above > FEW or (self._grown >= PROBES_IN_A_ROW and above >= PROBES_IN_A_ROW):
            return f"leaked {above} {self._what}"
        return ""


class Growth:
    """Watches the resident size. Its baseline is the lowest, raised by what first runs and resources have added."""

    def __init__(self) -> None:
        self._baseline: int | None = None
        self._before: int | None = None
        self._high = 0

    def begin(self, size: int) -> None:
        """A handler runs for the first time: what it has loaded until the next look is no growth."""
        if self._baseline is None:
            self._baseline = size
        self._before = size

    def keep(self, more: int) -> None:
        """So many more bytes are no growth."""
        if self._baseline is not None:
            self._baseline += more
        if self._before is not None:
            self._before += more

    def look(self, size: int) -> str:
        """Why the child should be replaced, or an empty string: at several looks in a row it was twice as large."""
        if self._before is not None:
            rise, self._before = max(0, size - self._before), None
            self.keep(rise)
        if self._baseline is None or size < self._baseline:
            self._baseline = size
        above = size - self._baseline
        self._high = self._high + 1 if above > max(GROWN, self._baseline) else 0
        return f"grew by {above >> 20} MiB" if self._high >= PROBES_IN_A_ROW else ""


class Tidiness:
    """Says after each job whether this child is still fit for the next one."""

    def __init__(self) -> None:
        self._threads = Leak("threads")
        self._descriptors = Leak("file descriptors")
        self._baseline = Baseline()
        self._growth = Growth()
        self._last_probe = 0
        self._last_end = 0
        self._spared = processes_below() if has_children() else frozenset()
        self.is_littered = False
        """Whether a job left processes behind: then this child must not just end, or they would outlive it."""
        self.wish = ""
        """Why this child should be replaced when that can be done without haste, as of the last verdict; or empty."""

    def first_run(self, *, units: int) -> None:
        """A handler begins to run for the first time here; the verdict on its job takes a close look."""
        self._threads.begin(_count_threads(), max(FIRST_THREADS, FIRST_THREADS_A_UNIT * units))
        self._descriptors.begin(_count_descriptors(), FIRST_DESCRIPTORS)
        self._growth.begin(_resident())
        self._last_probe = 0

    @contextlib.contextmanager
    def sparing(self) -> Iterator[None]:
        """What is built meanwhile may keep what it opens and starts, and what it changes in this process."""
        threads, descriptors, size = _count_threads(), _count_descriptors(), _resident()
        yield
        self._threads.keep(max(0, _count_threads() - threads))
        self._descriptors.keep(max(0, _count_descriptors() - descriptors))
        self._growth.keep(max(0, _resident() - size))
        self._baseline.take()
        self._spared = processes_below() if has_children() else frozenset()

    def before(self, started_ns: int) -> None:
        """A job begins: if the one before it ended a while ago, and was not followed by a probe, make up for that.

        What can't be put back is found again when the job has ended.
        """
        if self._last_probe < self._last_end < started_ns - PROBE_EVERY_NS:
            self._last_probe = started_ns
            self._baseline.probe()

    def verdict(self, *, started_ns: int, ended_ns: int) -> str:
        """Why this child takes no further job, or an empty string."""
        reason = self._baseline.restore()
        self._last_end = ended_ns
        took = ended_ns - started_ns
        if took >= FORK_NS and has_children():
            left = processes_below() - self._spared
            if left:
                self.is_littered = True
                return f"its job left {len(left)} process{'es' if len(left) > 1 else ''} behind"
        self.wish = ""
        if reason or (ended_ns - self._last_probe < PROBE_EVERY_NS and took < PROBE_AFTER_NS):
            return reason
        self._last_probe = ended_ns
        self.wish = (
            self._threads.look(_count_threads())
            or self._descriptors.look(_count_descriptors())
            or self._growth.look(_resident())
        )
        return self._baseline.probe()


def has_children() -> bool:
    """Whether this process has any child at all; it adopts the orphans of its descendants. Half a microsecond."""
    try:
        # WNOWAIT: look, and leave a zombie to whoever started it.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def processes_below() -> frozenset[int]:
    """The living processes directly below this one (zombies, which hold nothing, left out)."""
    if not os.path.exists(LISTS):
        return _found_by_parent(os.getpid())
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as listing:
                found.update(int(pid) for pid in listing.read().split())
        except FileNotFoundError:  # that thread has just ended
            continue
    return frozenset(pid for pid in found if not _is_zombie(pid))


def _found_by_parent(parent: int) -> frozenset[int]:
    """The same on a kernel that lists no children: by a look at every process."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as stat:
                state, its_parent = stat.read().rpartition(b")")[2].split()[:2]
                if int(its_parent) == parent and state not in {b"Z", b"X"}:
                    found.add(int(name))
    return frozenset(found)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _count_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return threading.active_count()


def _count_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return 0


def _resident() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except FileNotFoundError:
        return 0
