"""How many cores this process may really use: its CPU affinity and every cgroup quota above it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from tasuki_mp import cgroups


def usable_cores(*, root: Path = Path("/"), affinity: int | None = None) -> int:
    """The cores that the scheduler lets this process use, at least 1; half a core of quota counts as a whole one.

    A quota binds wherever it stands, so every ancestor's counts. `root` is where /proc and the cgroups hang.
    """
    allowed = affinity if affinity is not None else _affinity()
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([allowed, *quotas]))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Quota over period of each cgroup that has one, from this process's own up to the root that it can see."""
    for folder, is_v2, _ in cgroups.groups("cpu", root=root):
        if is_v2:
            quota, _, period = cgroups.read(folder / "cpu.max").partition(" ")
        else:
            quota, period = cgroups.read(folder / "cpu.cfs_quota_us"), cgroups.read(folder / "cpu.cfs_period_us")
        if (ratio := _ratio(quota, period)) is not None:
            yield ratio


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) <= 0 or int(period) <= 0:
        return None  # "max" in v2, -1 in v1, or no such file: no quota here
    return int(quota) / int(period)
