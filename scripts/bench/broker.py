"""A Redis of the benchmark's own, and the two questions asked of it; no client library is needed for that."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scripts.bench.venvs import MissingError
from scripts.harness.waiting import wait

SETTINGS: Final = ("--port", "0", "--save", "", "--appendonly", "no")
"""Nothing is written to disk: as fast as Redis can be, and a crash of it loses every job."""


class Redis:
    """A running server, by its Unix socket."""

    def __init__(self, path: Path) -> None:
        self.url = f"redis+socket://{path}"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def ask(self, *words: str) -> str:
        """One command with a one-line answer, without its first character."""
        parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
        self._socket.sendall("".join(parts).encode())
        answer = self._answers.readline().decode().strip()
        if answer[:1] not in {":", "+"}:
            raise RuntimeError(f"Redis answered {answer!r} to {' '.join(words)}")
        return answer[1:]

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


@contextmanager
def server(folder: Path) -> Iterator[Redis]:
    """Debian's Redis, for as long as the block lasts."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingError("redis-server is not there; on Debian and Ubuntu: apt-get install redis-server")
    path = folder / "redis.sock"
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *SETTINGS, "--unixsocket", str(path), "--dir", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        if not wait(path.exists, 30, every=0.02):
            raise RuntimeError(f"redis-server did not start: {(folder / 'redis.log').read_text()}")
        redis = Redis(path)
        try:
            yield redis
        finally:
            redis.close()
    finally:
        process.terminate()
        process.wait()
