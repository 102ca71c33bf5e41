"""What this host offers for keeping jobs in hand: what has to be there, and what is done without.

Looked at once, at the start. What is lacking goes into the log with what is done instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from tasuki_mp import cgroups
from tasuki_mp.child import guard, meter
from tasuki_mp.errors import ConfigError
from tasuki_mp.memory import OomKills

LISTS: Final = Path("proc/thread-self/children")
PEAK: Final = Path("proc/self/clear_refs")


class Lack(NamedTuple):
    """Something that a host may not have, and what is done then."""

    what: str
    instead: str


def require() -> None:
    """Raise ConfigError, unless this host has what nothing can replace."""
    needs = "running jobs needs Linux 5.3 or later; enqueueing works here"
    if not hasattr(os, "pidfd_open"):
        raise ConfigError(f"this system has no pidfds: {needs}")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise ConfigError(
            f"no pidfd can be had here ({error.strerror}): {needs}, and a container that allows them"
        ) from error
    if not guard.has_subreapers():
        raise ConfigError(f"no process can be made a subreaper here: {needs}")


def lacks(*, root: Path = Path("/")) -> list[Lack]:
    """What is done without here. `root` is where /proc and the cgroups hang."""
    found = []
    if not any(True for _ in cgroups.groups("memory", root=root)):
        found.append(Lack("cgroups of memory", "the physical memory is the limit, unless --memory-limit says another"))
    if not any(True for _ in cgroups.groups("cpu", root=root)):
        found.append(Lack("cgroups of cores", "the affinity says how many there are, unless --procs does"))
    if not OomKills(root=root).is_known:
        found.append(
            Lack("a count of OOM kills", "a job that the kernel kills for want of memory is recorded as a crash")
        )
    if not (root / LISTS).exists():
        found.append(Lack("lists of children in /proc", "all processes are looked through for those of a job"))
    if not meter.reset_peak(root / PEAK):
        found.append(Lack("clear_refs in /proc", "a job's peak of memory is known only if it is its child's highest"))
    return found
