"""A program that a test runs beside itself: tagged, spoken to in lines, and gone at the end with all below it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.support import leaks
from tests.support.waiting import TIMEOUT, NotInTimeError, wait_readable


class Program:
    """`python ARGUMENTS`, as a context manager. Its exit kills the program, and fails if anything of it survives that.

    With `leaves_behind=True` its descendants are meant to outlive it: they are killed without complaint.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        leaves_behind: bool = False,
        new_session: bool = False,
        stderr: int | None = None,
    ) -> None:
        self.tag = leaks.new_tag()
        self._leaves_behind = leaves_behind
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(env or {}), leaks.VARIABLE: self.tag},
            start_new_session=new_session,
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, *, timeout: float = TIMEOUT) -> str:
        """The next line of its output."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise NotInTimeError(f"the program said nothing more within {timeout:g} s") from None
        if line is None:
            raise AssertionError("the program closed its output")
        return line

    def further_lines(self, *, timeout: float = TIMEOUT) -> list[str]:
        """All further lines, until it closes its output; the timeout is for each."""
        lines: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                raise NotInTimeError(f"the program neither spoke nor ended within {timeout:g} s") from None
            if line is None:
                return lines
            lines.append(line)

    def words(self, *, timeout: float = TIMEOUT) -> list[str]:
        """The words of the next line."""
        return self.line(timeout=timeout).split()

    def say(self, text: str) -> None:
        """Give it a line of input."""
        assert self._process.stdin
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; what is below it is not touched."""
        self._process.kill()
        self.wait()

    def wait(self, *, timeout: float = TIMEOUT) -> int:
        """Its exit code, once it has ended; minus the signal's number if it was killed."""
        wait_readable(self.pidfd, timeout=timeout)
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        self.kill()
        try:
            if self._leaves_behind or kind is not None:
                for leak in leaks.tagged(self.tag):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(leak.pid, signal.SIGKILL)
            leaks.assert_none(self.tag)
        finally:
            os.close(self.pidfd)
            self._reader.join(TIMEOUT)
            assert self._process.stdin and self._process.stdout
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
