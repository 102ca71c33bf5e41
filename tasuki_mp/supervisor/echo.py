"""What handlers print, line by line, with the job in front: read from each child's output file, never in its way.

The file only grows for its writers; what was read is given back to the system by punching a hole. A child that writes
faster than this reads loses the middle of its output, and the loss is counted and said.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Final

from tasuki_mp.job import Lease

READ_AT_ONCE: Final = 256 * 1024
"""Bytes shown of what one look finds; a job that writes more between two looks has the rest dropped."""
LONGEST_LINE: Final = 8 * 1024
CRASH_REPORT: Final = 16 * 1024
_CRASH_HEADER: Final = b"Fatal Python error: "
_PUNCH_EVERY: Final = 1024 * 1024
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03

_libc = ctypes.CDLL(None, use_errno=True)

ShowLine = Callable[[Lease | None, str], None]


class Echo:
    """Reads one child's output file. `show` is called with the job (None outside of any) and each line."""

    def __init__(self, fd: int, show: ShowLine) -> None:
        self._fd = fd
        self._show = show
        self._read = 0
        self._job_began = 0
        self._punched = 0
        self._partial = b""

    def job_done(self, lease: Lease, end: int) -> None:
        """Show what is left of this job's output, which ends at byte `end`."""
        if end > self._read:
            self._advance(lease, end)
        self._flush(lease)
        self._job_began = end

    def peek(self, lease: Lease | None) -> None:
        """Show whole lines that were written so far by the job that runs."""
        end = os.fstat(self._fd).st_size
        if end > self._read:
            self._advance(lease, end)

    def crash_report(self) -> str:
        """The stack that the interpreter wrote as it died, if the last job's output ends with one."""
        end = os.fstat(self._fd).st_size
        # Not from what was not shown yet: a look between the report and the end of the process has shown it already.
        start = max(self._job_began, end - CRASH_REPORT)
        _, found, report = os.pread(self._fd, end - start, start).rpartition(_CRASH_HEADER)
        return (found + report).decode("utf-8", "backslashreplace") if found else ""

    def _advance(self, lease: Lease | None, end: int) -> None:
        size = end - self._read
        if size > READ_AT_ONCE:
            half = READ_AT_ONCE // 2
            self._take(lease, os.pread(self._fd, half, self._read))
            self._flush(lease)
            self._show(lease, f"[{size - 2 * half} bytes of output dropped]")
            self._take(lease, os.pread(self._fd, half, end - half))
        else:
            self._take(lease, os.pread(self._fd, size, self._read))
        self._read = end
        if self._read - self._punched >= _PUNCH_EVERY or size > READ_AT_ONCE:
            self._punch()

    def _take(self, lease: Lease | None, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(lease, line)
        while len(self._partial) > LONGEST_LINE:
            self._line(lease, self._partial[:LONGEST_LINE])
            self._partial = self._partial[LONGEST_LINE:]

    def _flush(self, lease: Lease | None) -> None:
        if self._partial:
            self._line(lease, self._partial)
            self._partial = b""

    def _line(self, lease: Lease | None, line: bytes) -> None:
        self._show(lease, line.rstrip(b"\r").decode("utf-8", "backslashreplace"))

    def _punch(self) -> None:
        page = 4096
        end = max(0, self._read - CRASH_REPORT) // page * page  # what a crash report may begin in is kept
        if end > self._punched:
            # A file system that can't punch only keeps more; the file goes when its child does.
            size = ctypes.c_long(end - self._punched)
            _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(self._punched), size)
            self._punched = end
