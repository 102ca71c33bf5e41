"""What a script wants to know of the machine: processes by tag and by parent, CPU times and steal, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tasuki_mp import embedded

TAG_VARIABLE: Final = "TASUKI_SCRIPT_TAG"
"""Set in the environment of everything that a script starts, and so of everything that those start."""


def new_tag() -> str:
    """A value for `TAG_VARIABLE` that no other process has."""
    return uuid.uuid4().hex


class Process(NamedTuple):
    pid: int
    parent: int
    state: str
    session: int
    command: str


def processes() -> Iterator[Process]:
    """Every process that can be looked at."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (found := process(int(entry.name))) is not None:
            yield found


def process(pid: int) -> Process | None:
    """One process; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    state, parent, _, session = stat[stat.rindex(b")") + 2 :].split()[:4]
    words = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(parent), state.decode(), int(session), words)


def tagged(tag: str) -> list[Process]:
    """The living processes whose environment carries the tag; zombies have none any more."""
    wanted = f"{TAG_VARIABLE}={tag}".encode()
    found = []
    for each in processes():
        try:
            if wanted in Path(f"/proc/{each.pid}/environ").read_bytes().split(b"\0"):
                found.append(each)
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


def children_of(parent: int) -> list[Process]:
    """Its living children and zombies."""
    return [each for each in processes() if each.parent == parent]


def forkserver_of(supervisor: int) -> int | None:
    """The pid of a supervisor's forkserver."""
    # Children that lost theirs look like it, and are adopted by the supervisor; but they have sessions of their own.
    found = [each for each in children_of(supervisor) if "forkserver" in each.command]
    return next((each.pid for each in found if each.session != each.pid and each.state != "Z"), None)


def slots_of(supervisor: int) -> list[int]:
    """The pids of a supervisor's slot children."""
    forkserver = forkserver_of(supervisor)
    return [] if forkserver is None else [each.pid for each in children_of(forkserver) if each.state != "Z"]


def descriptors(pid: int) -> int:
    """How many files that process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """How many threads that process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


class Steal:
    """The share of CPU time that the hypervisor gave to others, since this was made."""

    def __init__(self) -> None:
        self._begin = _cpu_times()

    @property
    def share(self) -> float:
        times = [now - before for now, before in zip(_cpu_times(), self._begin, strict=True)]
        return times[7] / max(1, sum(times[:8]))


def _cpu_times() -> list[int]:
    first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    return [int(word) for word in first.split()[1:]]


def cpu_seconds(pid: int) -> float:
    """CPU time that a living process has used, and its children that it has waited for."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    times = stat[stat.rindex(b")") + 2 :].split()[11:15]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds(pid: int) -> float:
    """CPU time that a living process has used itself."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return sum(map(int, stat[stat.rindex(b")") + 2 :].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def description() -> str:
    """The machine in one line, with the versions that matter."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    cores = len(os.sched_getaffinity(0))
    server = _said_by(embedded.installed() / "bin" / "postgres", "--version").split()[-1]
    return (
        f"{cores} cores of {model}, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {server}"
    )


def revision() -> str:
    """Of this checkout, short, with a word about what is not committed; empty if it is none."""
    try:
        return _said_by("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _said_by(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def now() -> float:
    """CLOCK_BOOTTIME in seconds: comparable between processes of this machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
