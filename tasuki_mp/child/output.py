"""Where a child's descriptors 1 and 2 lead: a file in memory that the supervisor reads beside it.

A write to it never blocks, whoever writes (Python, C, a subprocess) and however slow the supervisor is; the size of the
file at the end of a job says exactly which bytes are that job's. The supervisor frees what it has read by punching holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import tempfile
from io import TextIOWrapper
from typing import Any, TextIO, TypeGuard


class Output:
    """This child's output file, and the upkeep of descriptors 0, 1 and 2, which a job may close or redirect."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("tasuki-mp-output", os.MFD_CLOEXEC)
        else:
            file, path = tempfile.mkstemp(prefix="tasuki-mp-output-")
            os.unlink(path)
            self.fd = file
        # Appending is what lets several processes write without overwriting each other.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)
        self._streams: tuple[Any, Any] = (None, None)
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._redirect()

    def settle(self) -> int:
        """Flush, put descriptors 0 to 2 and the streams back where they belong, and say how many bytes were ever written."""
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        self._redirect()
        return os.lseek(self.fd, 0, os.SEEK_END)

    def _redirect(self) -> None:
        try:
            # To put them back takes a third of the time that a look at them takes.
            os.dup2(self._null, 0)
            os.dup2(self.fd, 1)
            os.dup2(self.fd, 2)
        except OSError:  # the job has left a limit of open files below three
            self._require_intact()
        if (
            sys.stdout is not self._streams[0]
            or sys.stderr is not self._streams[1]
            or sys.stdout.closed
            or sys.stderr.closed
        ):
            self._replace_streams()

    def _require_intact(self) -> None:
        """Raises OSError unless descriptors 0 to 2 are where they belong."""
        null, ours = os.fstat(self._null), os.fstat(self.fd)
        for fd, wanted in ((0, null), (1, ours), (2, ours)):
            if not os.path.samestat(os.fstat(fd), wanted):
                raise OSError(errno.EBADF, f"descriptor {fd} can't be put back")

    def _replace_streams(self) -> None:
        for name, fd, before in (("stdout", 1, self._streams[0]), ("stderr", 2, self._streams[1])):
            stream = before if _leads_to(before, fd) else getattr(sys, name)
            if _leads_to(stream, fd):
                stream.reconfigure(line_buffering=True, errors="backslashreplace")
            else:
                stream = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        self._streams = (sys.stdout, sys.stderr)


def _leads_to(stream: TextIO | None, fd: int) -> TypeGuard[TextIOWrapper]:
    try:
        return stream is not None and not stream.closed and stream.fileno() == fd and hasattr(stream, "reconfigure")
    except (OSError, ValueError, AttributeError):
        return False


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError, AttributeError):
        # The job closed or replaced it, and what it had buffered is the job's own loss; the redirect below mends it.
        return
