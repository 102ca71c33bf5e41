"""What a job uses, measured in its child: CPU time and the highest memory, for three microseconds a job.

CPU time comes from getrusage, subprocesses that were waited for included. The kernel keeps the highest resident size of a
process; it is set back (clear_refs, 6 µs) after a job that raised it, so that the next one starts with its own.
"""

from __future__ import annotations

import os
import resource
from typing import Final, Protocol

from tasuki_mp import wire

NOTABLE: Final = 1024
"""KiB. A job that raises the highest resident size by less has it not set back."""
_CLEAR_PEAK: Final = b"5"


class Page(Protocol):
    """The words that this child shares with its supervisor."""

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Meter:
    """Started and stopped around each job. Made just before the child says hello: memory counts from there."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._can_reset = _reset_peak()
        self._highest = self._base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._user = self._system = 0.0
        self._children_user, self._children_system = _of_children()

    def start(self) -> None:
        """A job is about to begin; what this process has used by then is on the page, for whoever finds it dead."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._user, self._system = used.ru_utime, used.ru_stime
        self._page[wire.PAGE_USER] = int((used.ru_utime + self._children_user) * 1e6)
        self._page[wire.PAGE_SYSTEM] = int((used.ru_stime + self._children_system) * 1e6)

    def stop(self) -> wire.Used:
        """The job has ended."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        children_user, children_system = _of_children()
        user = used.ru_utime - self._user + children_user - self._children_user
        system = used.ru_stime - self._system + children_system - self._children_system
        self._children_user, self._children_system = children_user, children_system
        peak = self._peak(used.ru_maxrss)
        held = max(0, self._highest - self._base) * 1024
        return wire.Used(int(user * 1e6), int(system * 1e6), peak, held)

    def _peak(self, highest: int) -> int | None:
        """Bytes beyond the size at hello; None where the kernel can't say it of this job alone."""
        grown = highest - self._highest
        if grown >= NOTABLE:
            self._highest = highest
            if self._can_reset and _reset_peak():
                self._highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        elif not self._can_reset:
            return None
        return max(0, highest - self._base) * 1024


def _of_children() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime, used.ru_stime


def _reset_peak() -> bool:
    """Set the highest resident size back to the present one; False where that can't be done."""
    try:
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, _CLEAR_PEAK)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
