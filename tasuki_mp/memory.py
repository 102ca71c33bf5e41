"""How much memory this host's jobs may have, how much is left of it, and whether the kernel has killed for want of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tasuki_mp import cgroups

RESERVE_SHARE: Final = 0.05
RESERVE_MOST: Final = 1 << 30
"""Left out of the default limit: for the kernel, for what is not ours, and for the time between two looks."""
_NO_LIMIT: Final = 1 << 60
"""Version 1 writes a number near 2**63 where there is no limit."""


def default_limit(*, root: Path = Path("/")) -> int:
    """Bytes: the smallest limit of this process's cgroups or the physical memory, less a reserve.

    A limit binds wherever it stands, so every ancestor's counts. `root` is where /proc and the cgroups hang.
    """
    most = min([*group_limits(root=root), _physical(root)])
    return max(1, most - int(min(RESERVE_MOST, most * RESERVE_SHARE)))


def group_limits(*, root: Path = Path("/")) -> Iterator[int]:
    """The limit of each cgroup of this process that has one, in bytes."""
    for folder, is_v2, _ in cgroups.groups("memory", root=root):
        text = cgroups.read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
            yield int(text)


def _physical(root: Path) -> int:
    for line in cgroups.read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # nobody says: then there is no limit but the kernel's
        return _NO_LIMIT
