"""What a job uses, measured in its child: CPU time and the highest memory, for two microseconds a job.

CPU time comes from getrusage, subprocesses that were waited for included. That of a job which follows another at once begins
where the other's was read, so the dozen microseconds in which the child is tidied up for it are its own. The kernel keeps
the highest resident size of a process; it is set back (clear_refs, 6 µs) after a job that raised it, and every 100 ms, since
memory may have been freed. Of a job that took less than a tenth of a millisecond only the CPU time is read, on the clock of
the process: it could start no process and fill a few hundred pages at most, so the peak is the one that was read last. Shares
of user and system time are what they were then; those that the kernel tells come from as coarse a count.
"""

from __future__ import annotations

import os
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import process_time
from typing import Final, Protocol

from tasuki_mp import wire

NOTABLE: Final = 1024
"""KiB. A job that raises the highest resident size by less has it not set back."""
RESET_EVERY_NS: Final = 100_000_000
AT_ONCE_NS: Final = 500_000
"""A job that begins so soon after the one before is taken to follow it at once."""
BRIEF_NS: Final = 100_000
"""A job that took less has not started a process and waited for its end, nor filled memory worth speaking of."""
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
        self._reset_ns = self._read_ns = 0
        self._started_ns = self._ended_ns = 0
        self._user = self._system = 0.0
        """CPU seconds that are told so far: what is used beyond them is the next job's."""
        self._read_user = self._read_system = 0.0
        """What the kernel told last."""
        self._share = 1.0
        """Of user time in what it told between then and the time before."""
        self._children_user, self._children_system = _of_children()

    def start(self, started_ns: int) -> None:
        """A job begins at that time of a clock that never goes back; what was used before it is no job's."""
        self._started_ns = started_ns
        if started_ns - self._ended_ns > AT_ONCE_NS:
            used = getrusage(RUSAGE_SELF)
            self._user, self._system = used.ru_utime, used.ru_stime
            self._note()

    def stop(self, ended_ns: int) -> wire.Used:
        """The job has ended, at that time of the same clock."""
        self._ended_ns = ended_ns
        took = ended_ns - self._started_ns
        if took < BRIEF_NS and ended_ns - self._read_ns < RESET_EVERY_NS:
            return self._stop_brief()
        self._read_ns = ended_ns
        used = getrusage(RUSAGE_SELF)
        total = max(0.0, used.ru_utime + used.ru_stime - self._user - self._system)
        user = min(max(0.0, used.ru_utime - self._user), total)
        system = total - user
        more_user, more_system = used.ru_utime - self._read_user, used.ru_stime - self._read_system
        if more_user + more_system > 0.0:
            self._share = more_user / (more_user + more_system)
        self._user = self._read_user = used.ru_utime
        self._system = self._read_system = used.ru_stime
        if took >= BRIEF_NS:
            children_user, children_system = _of_children()
            user += children_user - self._children_user
            system += children_system - self._children_system
            self._children_user, self._children_system = children_user, children_system
        self._note()
        peak = self._peak(used.ru_maxrss, ended_ns)
        return wire.Used(int(user * 1e6), int(system * 1e6), peak, self._held())

    def _stop_brief(self) -> wire.Used:
        total = max(0.0, process_time() - self._user - self._system)
        user = total * self._share
        self._user += user
        self._system += total - user
        self._note()
        held = self._held()
        total_us, user_us = round(total * 1e6), round(user * 1e6)
        return wire.Used(user_us, total_us - user_us, held if self._can_reset else None, held)

    def _held(self) -> int:
        """Bytes beyond the size at hello, by the last reading."""
        return max(0, self._highest - self._base) * 1024

    def _note(self) -> None:
        """Write on the page what was used before the next job, for whoever finds it dead."""
        self._page[wire.PAGE_USER] = int((self._user + self._children_user) * 1e6)
        self._page[wire.PAGE_SYSTEM] = int((self._system + self._children_system) * 1e6)

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
