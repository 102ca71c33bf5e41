"""Who a supervisor is: facts from which another one on the same host can prove that it is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import UUID, uuid4

from tasuki_mp.store.upkeep import OtherSupervisor, SupervisorRow
from tasuki_mp.version import __version__


def own_row(
    *,
    procs: int,
    queues: list[str],
    handlers: list[str],
    lease: float,
    schedules: list[str] | None = None,
    app: str | None = None,
) -> SupervisorRow:
    """This process as a row of `tasuki.supervisor`, under a fresh owner id: a restart is somebody else."""
    owner: UUID = uuid4()
    return SupervisorRow(
        owner=owner,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()) or 0,
        boot_id=_boot_id(),
        pid_ns=_pid_namespace(),
        version=__version__,
        procs=procs,
        queues=queues,
        handlers=handlers,
        lease_seconds=lease,
        schedules=schedules,
        app=app,
    )


def is_provably_gone(other: OtherSupervisor) -> bool:
    """Whether that supervisor ran under this very kernel boot and pid namespace, and its process does not exist any more.

    False whenever that can't be known, as for another host, or without /proc.
    """
    if not other.boot_id or not other.pid_ns or (other.boot_id, other.pid_ns) != (_boot_id(), _pid_namespace()):
        return False
    started = _started(other.pid)
    return started != other.pid_started if started is not None else not _exists(other.pid)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When that process started, in clock ticks since boot; None if it can't be seen, 0 if only its zombie is left."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])


def _exists(pid: int) -> bool:
    """Whether there is such a process, also where /proc shows only one's own (hidepid, ProtectProc)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
