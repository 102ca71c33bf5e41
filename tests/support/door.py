"""Jobs that a test holds in its hand: each comes to a door, says who it is, and does what it is told there.

The application is `tests.support.door:app`. A `hold` job connects to the Unix socket that its payload names.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasuki_mp import Context, Tasuki
from tests.support.waiting import TIMEOUT, NotInTimeError

app = Tasuki()


@app.handler(max_attempts=5)
def hold(door: str, ctx: Context) -> str:
    """Come to the door and obey: "return TEXT", "raise TEXT", "exit CODE", "print TEXT" and come back, "burn", "watch".

    Whoever watches returns as soon as it should stop, and says why.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(door)
        me = {"pid": os.getpid(), "job": ctx.job_id, "lease_no": ctx.lease_no, "attempt": ctx.attempt}
        with sock.makefile("rw", encoding="utf-8") as lines:
            lines.write(json.dumps(me) + "\n")
            lines.flush()
            while order := lines.readline().split():
                match order:
                    case ["return", *words]:
                        return " ".join(words)
                    case ["exit", code]:
                        os._exit(int(code))
                    case ["print", *words]:
                        print(*words, flush=True)
                        lines.write("done\n")
                        lines.flush()
                    case ["burn"]:
                        lines.write("done\n")
                        lines.flush()
                        sum(range(10**13))
                    case ["watch"]:
                        lines.write("done\n")
                        lines.flush()
                        while not ctx.should_stop:
                            time.sleep(0.001)  # noqa: TID251 -- what handlers do
                        return str(ctx.stop_reason)
                    case ["raise", *words]:
                        raise ValueError(" ".join(words))
                    case _:
                        raise RuntimeError(f"no such order: {order}")
    raise RuntimeError("the test went away")


@app.handler(max_attempts=1)
def once(door: str, ctx: Context) -> str:
    """The same with one attempt only."""
    return hold.function(door, ctx)


@app.handler(max_attempts=5, fence="kill", cancel_grace=0)
def fenced(door: str, ctx: Context) -> str:
    """The same, to be killed at once if its lease can't be trusted any more, or it is canceled."""
    return hold.function(door, ctx)


@app.handler
def note(text: str = "") -> str:
    """Return at once."""
    return text


@dataclass
class Visitor:
    """A job that stands at the door, and will until it is told what to do."""

    pid: int
    job: int
    lease_no: int
    attempt: int
    _sock: socket.socket
    restored: Any = None
    """The checkpoint it was given, where its handler says so."""

    def tell(self, order: str) -> None:
        """Give the order; return when the job has come back, if it does."""
        if order.startswith(("print", "burn", "watch")):
            self.ask(order)
        else:
            self._sock.sendall(f"{order}\n".encode())

    def ask(self, order: str) -> None:
        """Give the order to a job that says when it has carried it out, or begins to."""
        self._sock.sendall(f"{order}\n".encode())
        self.hear("done")

    def hear(self, word: str) -> None:
        """Wait until the job says that."""
        assert self._sock.recv(64) == f"{word}\n".encode()

    def wait_gone(self) -> None:
        """Until the job's process has closed its end, as it does when it dies."""
        try:
            assert self._sock.recv(64) == b""
        except TimeoutError:
            raise NotInTimeError(f"job {self.job} still stands at the door") from None
        except ConnectionResetError:
            return

    def signal(self, number: signal.Signals) -> None:
        """Send its child process a signal."""
        os.kill(self.pid, number)

    def close(self) -> None:
        self._sock.close()


class Door:
    """Where `hold` and `once` jobs come to. `path` goes into their payloads."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="door-")  # pytest's own paths can be too long for a socket
        self.path = str(Path(self._folder, "s"))
        self._visitors: list[Visitor] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.path)
        self._sock.listen(64)

    def visitor(self, *, timeout: float = TIMEOUT) -> Visitor:
        """The next job that comes."""
        self._sock.settimeout(timeout)
        try:
            sock, _ = self._sock.accept()
        except TimeoutError:
            raise NotInTimeError(f"no job came to the door within {timeout:g} s") from None
        sock.settimeout(TIMEOUT)
        line = b""
        while not line.endswith(b"\n"):
            if not (data := sock.recv(1024)):
                raise AssertionError("a job came to the door and died before it said who it is")
            line += data
        visitor = Visitor(**json.loads(line), _sock=sock)
        self._visitors.append(visitor)
        return visitor

    def is_quiet(self) -> bool:
        """Whether no job waits outside that `visitor` has not returned."""
        self._sock.settimeout(0)
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return True
        sock.close()
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for visitor in self._visitors:
            visitor.close()
        self._sock.close()
        shutil.rmtree(self._folder)
