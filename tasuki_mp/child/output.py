"""Where a child's descriptors 1 and 2 lead: a file in memory that the supervisor reads beside it.

A write to it never blocks, whoever writes (Python, C, a subprocess) and however slow the supervisor is; the size of the
file at the end of a job says exactly which bytes are that job's. The supervisor frees what it has read by punching holes.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from typing import TextIO


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
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._inode = os.fstat(self.fd).st_ino
        self._null_inode = os.fstat(self._null).st_ino
        self._redirect()

    def settle(self) -> int:
        """Flush, put descriptors 0 to 2 back where they belong, and say how many bytes were ever written."""
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
        try:
            out = os.fstat(1)
            is_intact = (
                out.st_ino == self._inode
                and os.fstat(2).st_ino == self._inode
                and os.fstat(0).st_ino == self._null_inode
            )
        except OSError:
            is_intact = False
        if not is_intact:
            self._redirect()
            out = os.fstat(1)
        return out.st_size

    def _redirect(self) -> None:
        os.dup2(self._null, 0)
        os.dup2(self.fd, 1)
        os.dup2(self.fd, 2)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            stream = getattr(sys, name)
            if _leads_to(stream, fd):
                stream.reconfigure(line_buffering=True, errors="backslashreplace")
            else:
                fresh = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, fresh)


def _leads_to(stream: TextIO | None, fd: int) -> bool:
    try:
        return stream is not None and not stream.closed and stream.fileno() == fd
    except (OSError, ValueError, AttributeError):
        return False


def _flush(stream: TextIO | None) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError, AttributeError):
        # The job closed or replaced it, and what it had buffered is the job's own loss; the redirect below mends it.
        return
