"""How much memory this host's jobs may have, how much is left of it, and whether the kernel has killed for want of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tasuki_mp import cgroups

RESERVE_SHARE: Final = 0.05
RESERVE_MOST: Final = 1 << 30
"""Left out of the default limit: for the kernel, for what is not ours, and for the time between two looks."""
RECENT: Final = 5.0
"""Seconds within which a kill by the OOM killer and the death of its victim are noticed."""
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes a number near 2**63 where there is no limit."""


def default_limit(*, root: Path = Path("/")) -> int:
    """Bytes: the smallest limit of this process's cgroups or the physical memory, less a reserve.

    A limit binds wherever it stands, so every ancestor's counts. `root` is where /proc and the cgroups hang.
    """
    most = min([*(limit for limit, _, _ in _limits(root)), _physical(root)])
    return _less_reserve(most)


def _less_reserve(limit: int) -> int:
    return max(1, limit - int(min(RESERVE_MOST, limit * RESERVE_SHARE)))


def _limits(root: Path) -> Iterator[tuple[int, Path, bool]]:
    """The limit of each cgroup of this process that has one, its folder, and whether that is of version 2."""
    for folder, is_v2, _ in cgroups.groups("memory", root=root):
        text = cgroups.read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
            yield int(text), folder, is_v2


def _physical(root: Path) -> int:
    if (total := _field(cgroups.read(root / "proc/meminfo"), "MemTotal:")) is not None:
        return total * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # nobody says: then there is no limit but the kernel's
        return _NO_LIMIT


class Ceiling(NamedTuple):
    """Something that kills when it is full: a cgroup with a limit, or the machine."""

    limit: int
    folder: Path
    is_v2: bool
    is_machine: bool = False

    @property
    def most(self) -> int:
        """Bytes that may be used there, with the same reserve as the default limit's: to act before the kernel does."""
        return _less_reserve(self.limit)

    def used(self) -> int | None:
        """Bytes that the kernel could not get back by dropping caches; None if nobody says."""
        if self.is_machine:
            available = _field(cgroups.read(self.folder / "proc/meminfo"), "MemAvailable:")
            return None if available is None else self.limit - available * 1024
        current = cgroups.read(self.folder / ("memory.current" if self.is_v2 else "memory.usage_in_bytes"))
        if not current.isdecimal():
            return None
        stat, total = cgroups.read(self.folder / "memory.stat"), "" if self.is_v2 else "total_"
        caches = sum(_field(stat, f"{total}{name}") or 0 for name in ("inactive_file", "active_file"))
        return max(0, int(current) - caches)


def ceilings(*, root: Path = Path("/")) -> list[Ceiling]:
    """Every limit whose excess makes the kernel kill, the machine's own among them."""
    found = [Ceiling(limit, folder, is_v2) for limit, folder, is_v2 in _limits(root)]
    machine = Ceiling(_physical(root), root, is_v2=False, is_machine=True)
    return [ceiling for ceiling in (*found, machine) if ceiling.used() is not None]


class OomKills:
    """How often the kernel's OOM killer has struck: in this process's own cgroup, or else anywhere on the machine.

    A kill counts as recent for a few seconds, until somebody's death is explained by it.
    """

    def __init__(self, *, root: Path = Path("/")) -> None:
        self._file = next((file for file in _counters(root) if _kills(file) is not None), None)
        self._seen = self._count()
        self._unexplained: list[float] = []
        self.is_known = self._seen is not None
        """Whether anybody counts them here."""

    def look(self, now: float) -> None:
        """Notice kills; often enough that each is noticed within seconds."""
        count = self._count()
        if count is not None and self._seen is not None and count > self._seen:
            self._unexplained += [now] * (count - self._seen)
        self._seen = count

    def explains(self, now: float) -> bool:
        """Whether a process that has just been killed was a victim: there was a kill that explains no other death."""
        self.look(now)
        self._unexplained = [at for at in self._unexplained if now - at <= RECENT]
        if self._unexplained:
            self._unexplained.pop(0)
            return True
        return False

    def _count(self) -> int | None:
        return None if self._file is None else _kills(self._file)


def _counters(root: Path) -> Iterator[Path]:
    """Where kills are counted: those in the cgroup this process is in, those on the whole machine."""
    for folder, is_v2, is_own in cgroups.groups("memory", root=root):
        if is_own:
            yield folder / ("memory.events" if is_v2 else "memory.oom_control")
    yield root / "proc/vmstat"


def _kills(file: Path) -> int | None:
    return _field(cgroups.read(file), "oom_kill")


def _field(text: str, name: str) -> int | None:
    """The number behind a name, in files of a name and a number a line."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == name and fields[1].isdecimal():
            return int(fields[1])
    return None
