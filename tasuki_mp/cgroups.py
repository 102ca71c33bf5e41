"""Where this process's control groups are, version 1 or 2: the folders whose files say what it may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Group(NamedTuple):
    """One control group that this process is in."""

    folder: Path
    is_v2: bool
    is_own: bool
    """Whether this process is in it directly, and not only in one below."""


def groups(controller: str, *, root: Path = Path("/")) -> Iterator[Group]:
    """Every group that this controller (`cpu`, `memory`) could act through, from the topmost that can be seen down.

    A limit binds wherever it stands, so every ancestor counts. `root` is where /proc and the cgroups hang.
    """
    memberships = list(_memberships(root))
    for kind, mount_root, mount_point in _mounts(root, controller):
        for controllers, path in memberships:
            is_v2 = not controllers
            if (kind == "cgroup2") != is_v2 or (not is_v2 and controller not in controllers):
                continue
            below = _below(path, mount_root)
            folder = root / mount_point.lstrip("/")
            yield Group(folder, is_v2, is_own=not below.parts)
            for index, part in enumerate(below.parts, 1):
                folder /= part
                yield Group(folder, is_v2, is_own=index == len(below.parts))


def read(path: Path) -> str:
    """The file's text, its lines stripped; empty where there is none: another kind of cgroup, or of machine."""
    return "\n".join(_lines(path)).strip()


def _memberships(root: Path) -> Iterator[tuple[list[str], str]]:
    for line in _lines(root / "proc/self/cgroup"):
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield [name for name in fields[1].split(",") if name], fields[2]


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, str, str]]:
    """Kind, root and mount point of each cgroup file system that can carry the controller; see proc_pid_mountinfo(5)."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2" or (tail[0] == "cgroup" and controller in tail[2].split(",")):
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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
