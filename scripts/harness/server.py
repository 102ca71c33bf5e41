"""A PostgreSQL of one script's own: the embedded one with its durable settings, in a folder that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tasuki_mp import embedded
from tasuki_mp.embedded import place, watch
from tasuki_mp.migrate import migrate

StopMode = Literal["fast", "immediate"]


class Server:
    """A running server. `fast` and `immediate` are PostgreSQL's own words for how it is stopped."""

    def __init__(self, running: embedded.EmbeddedServer) -> None:
        self.dsn = running.dsn
        self.folder = running.folder
        self._owner = place.owner_of(self.folder)
        self._binaries = place.runnable(place.installed(), self.folder, self._owner)

    @property
    def socket(self) -> Path:
        """The Unix socket it listens on."""
        note = self.folder / watch.SOCKET_NOTE
        folder = Path(note.read_text()) if note.exists() else self.folder / "socket"
        return folder / ".s.PGSQL.5432"

    def stop(self, mode: StopMode) -> None:
        """Stop it; returns when it is gone."""
        self._control("stop", "-m", mode)

    def start(self) -> None:
        """Start it again; returns when it accepts connections."""
        self._control("start", "-o", "-c config_file=tasuki.conf", "-l", "server.log")

    def _control(self, verb: str, *arguments: str) -> None:
        program = self._binaries / "bin" / "pg_ctl"
        command: list[str | Path] = [program, verb, "-s", "-w", "-t", "60", "-D", "data", *arguments]
        done = self._owner.run(command, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"pg_ctl {verb} failed: {done.stdout.strip()}")


@contextmanager
def scratch_server(settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server with an empty, migrated database, that keeps what it was told (fsync and synchronous_commit are on)."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-script-"))
    folder.chmod(0o711)  # as root the server runs as somebody else, who must pass through
    pid = None
    try:
        with embedded.start(folder / "pg", settings=settings) as running:
            migrate(running.dsn)
            try:
                yield Server(running)
            finally:
                pid = running.pid
    finally:
        if pid is not None:
            _wait_gone(pid)
        shutil.rmtree(folder)


def _wait_gone(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        watch.wait_gone(pidfd, 30)
    finally:
        os.close(pidfd)
