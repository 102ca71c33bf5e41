"""The process that stops the embedded PostgreSQL when its last user is gone, and what it knows of a data folder.

Runs as a program of its own (`python -I -S watch.py FOLDER WATCHER_FD`) on the standard library alone, so that it
starts in 20 ms and needs no package. Every user of the server holds a shared lock on `FOLDER/users`; this process waits
for the exclusive one. The kernel drops a lock with its process, so a SIGKILL of the last user is noticed like an
orderly end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from pathlib import Path
from typing import Final

USERS: Final = "users"
"""Held shared by every user of the server, exclusively while it is being stopped."""
SOCKET_NOTE: Final = "socket-folder"
"""Says where the socket is, when the data folder's own path is too long for one."""

# Together below the five seconds within which the server must be gone.
_STOP_LADDER: Final = ((signal.SIGINT, 3.0), (signal.SIGQUIT, 1.0), (signal.SIGKILL, 5.0))


def is_server_process(pid: int, data: Path) -> bool:
    """Whether this process is a PostgreSQL that works in `data`; a reused process id is not."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text()
        return comm.startswith("postgres") and os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(data)
    except OSError:  # gone, or somebody else's and so not ours
        return False


def noted_pid(data: Path) -> int | None:
    """The process id in the server's pid file, whatever became of that process."""
    try:
        return int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def open_server(data: Path) -> int | None:
    """A pidfd of the server that runs in `data`, to be closed by the caller; None if there is none."""
    pid = noted_pid(data)
    if pid is None or pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Asked after opening: from here on the pidfd can't come to mean another process.
    if is_server_process(pid, data):
        return pidfd
    os.close(pidfd)
    return None


def wait_gone(pidfd: int, timeout: float) -> bool:
    """Whether the process ended within that many seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def stop(pidfd: int) -> bool:
    """Stop a server: orderly, else at once, else by force. Whether it is gone."""
    for signo, patience in _STOP_LADDER:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself, which the wait below sees
            signal.pidfd_send_signal(pidfd, signo)
        if wait_gone(pidfd, patience):
            return True
    return False


def watch(folder: Path, watcher_fd: int) -> None:
    """Wait until nobody uses the server, then stop it. `watcher_fd` holds the lock that says a watcher is there."""
    users = os.open(folder / USERS, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(users, fcntl.LOCK_EX)
        pidfd = open_server(folder / "data")
        if pidfd is not None:
            try:
                stop(pidfd)
            finally:
                os.close(pidfd)
        note = folder / SOCKET_NOTE
        if note.exists():
            # Not empty after a kill; the next start uses it again.
            with contextlib.suppress(OSError):
                Path(note.read_text()).rmdir()
    finally:
        # In this order: whoever gets the users' lock next must see that no watcher is left.
        os.close(watcher_fd)
        os.close(users)


def main(folder: str, watcher_fd: str) -> None:
    """Leave the process that started us, so that nobody has to reap this one, and watch."""
    if os.fork():
        os._exit(0)
    watch(Path(folder), int(watcher_fd))


if __name__ == "__main__":
    main(*sys.argv[1:])
