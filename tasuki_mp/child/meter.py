"""What a job uses, measured in its child: CPU time and the highest memory, for four microseconds a job.

CPU time comes from getrusage, subprocesses that were waited for included. The kernel keeps the highest resident size of a
process; it is set back (clear_refs, 6 µs) after a job that raised it, and every 100 ms, since memory may have been freed.
"""

from __future__ import annotations

import os
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Final, Protocol

from tasuki_mp import wire

NOTABLE: Final = 1024
"""KiB. A job that raises the highest resident size by less has it not set back."""
RESET_EVERY_NS: Final = 100_000_000
_CLEAR_PEAK: Final = b"5"


class Page(Protocol):
    """The words that this child shares with its supervisor."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Meter:
    """Started and stopped around each job. Made just before the child says hello: memory counts from there."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._can_reset = reset_peak()
        self._highest = self._base = getrusage(RUSAGE_SELF).ru_maxrss
        self._reset_ns = 0
        self._user = self._system = 0.0
        self._children_user, self._children_system = _of_children()

    def start(self) -> None:
        """A job is about to begin; what this process has used by then is on the page, for whoever finds it dead."""
        used = getrusage(RUSAGE_SELF)
        self._user, self._system = used.ru_utime, used.ru_stime
        self._page[wire.PAGE_USER] = int((used.ru_utime + self._children_user) * 1e6)
        self._page[wire.PAGE_SYSTEM] = int((used.ru_stime + self._children_system) * 1e6)

    def stop(self, now_ns: int) -> wire.Used:
        """The job has ended, at that time of a clock that never goes back."""
        used = getrusage(RUSAGE_SELF)
        children_user, children_system = _of_children()
        user = used.ru_utime - self._user + children_user - self._children_user
        system = used.ru_stime - self._system + children_system - self._children_system
        self._children_user, self._children_system = children_user, children_system
        peak = self._peak(used.ru_maxrss, now_ns)
        held = max(0, self._highest - self._base) * 1024
        return wire.Used(int(user * 1e6), int(system * 1e6), peak, held)

    def _peak(self, highest: int, now_ns: int) -> int | None:
        """Bytes beyond the size at hello; None where the kernel can't say it of this job alone."""
        has_grown = highest - self._highest >= NOTABLE
        if has_grown or now_ns - self._reset_ns >= RESET_EVERY_NS:
            self._highest, self._reset_ns = highest, now_ns
            if self._can_reset and reset_peak():
                self._highest = getrusage(RUSAGE_SELF).ru_maxrss
        if not has_grown and not self._can_reset:
            return None
        return max(0, highest - self._base) * 1024


def _of_children() -> tuple[float, float]:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


def reset_peak(file: str | Path = "/proc/self/clear_refs") -> bool:
    """Set the highest resident size of this process back to the present one; False where that can't be done."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, _CLEAR_PEAK)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
