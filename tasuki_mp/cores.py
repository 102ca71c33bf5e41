"""How many cores this process may really use: its CPU affinity and every cgroup quota above it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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
    memberships = list(_memberships(root))
    for kind, mount_root, mount_point in _mounts(root):
        for controllers, path in memberships:
            is_v2 = not controllers
            if (kind == "cgroup2") != is_v2 or (not is_v2 and "cpu" not in controllers):
                continue
            for folder in _chain(root / mount_point.lstrip("/"), _below(path, mount_root)):
                quota = _quota_v2(folder) if is_v2 else _quota_v1(folder)
                if quota is not None:
                    yield quota


def _memberships(root: Path) -> Iterator[tuple[list[str], str]]:
    for line in _lines(root / "proc/self/cgroup"):
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield [name for name in fields[1].split(",") if name], fields[2]


def _mounts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, root and mount point of each cgroup file system that can carry CPU quotas; see proc_pid_mountinfo(5)."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2" or (tail[0] == "cgroup" and "cpu" in tail[2].split(",")):
            yield tail[0], _unescape(fields[3]), _unescape(fields[4])


def _unescape(path: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _below(path: str, mount_root: str) -> PurePosixPath:
    """The cgroup's place under the mount; the mount itself when a container shows paths of a tree that it can't see."""
    try:
        relative = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in relative.parts else relative


def _chain(mount_point: Path, relative: PurePosixPath) -> Iterator[Path]:
    folder = mount_point
    yield folder
    for part in relative.parts:
        folder /= part
        yield folder


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = " ".join(_lines(folder / "cpu.max")).partition(" ")
    return _ratio(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _ratio(" ".join(_lines(folder / "cpu.cfs_quota_us")), " ".join(_lines(folder / "cpu.cfs_period_us")))


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) <= 0 or int(period) <= 0:
        return None  # "max" in v2, -1 in v1, or no such file: no quota here
    return int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # another kind of cgroup, or another kind of machine: says nothing about quotas
        return []
