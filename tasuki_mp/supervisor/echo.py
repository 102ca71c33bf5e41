"""What handlers print, line by line, with the job in front: read from each child's output file, never in its way.

The file only grows for its writers; what was read is given back to the system by punching a hole, but for the end of it,
which is stored with the attempt. A child that writes faster than this reads loses the middle of its output, and the loss
is counted and said. What a flood brings between two looks is let go without being read.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from tasuki_mp.child.describe import storable
from tasuki_mp.job import Lease

READ_AT_ONCE: Final = 256 * 1024
"""Bytes shown of what one look finds; a job that writes more between two looks has the rest dropped."""
FLOOD: Final = 4 * 1024 * 1024
"""Bytes not read yet that are kept until the next look."""
STORED: Final = 64 * 1024
"""Bytes of an attempt's output that are kept: its end."""
LAST_WORDS: Final = 2 * 1024
"""Characters of that which a crash's error holds."""
LONGEST_LINE: Final = 8 * 1024
CRASH_REPORT: Final = 16 * 1024
_OURS: Final = "/tasuki_mp/child/"
_CRASH_HEADER: Final = b"Fatal Python error: "
_PUNCH_EVERY: Final = 1024 * 1024
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03

_libc = ctypes.CDLL(None, use_errno=True)

ShowLine = Callable[[Lease | None, str], None]


class Piece(NamedTuple):
    """A part of a job's output; `start` and `end` are bytes from its beginning, and `text` fits into a database."""

    start: int
    end: int
    text: str


class Echo:
    """Reads one child's output file. `show` is called with the job (None outside of any) and each line."""

    def __init__(self, fd: int, show: ShowLine) -> None:
        self._fd = fd
        self._show = show
        self._read = 0
        self._punched = 0
        self._partial = b""
        self._dropped = 0
        """Bytes that were let go unread, and nobody was told of yet."""
        self._begin = 0
        """Where the output of the present job begins."""
        self._show_rest(None, os.fstat(fd).st_size)

    def job_done(self, lease: Lease, end: int) -> str:
        """Show what is left of this job's output, which ends at byte `end`; returns what is to be stored of it."""
        stored = self._stored(end) if end > self._begin else ""
        self._show_rest(lease, end)
        return stored

    def job_died(self, lease: Lease | None) -> str:
        """The same for the job whose process has died, and for what a process without a job wrote last."""
        end = os.fstat(self._fd).st_size
        if lease is not None:
            return self.job_done(lease, end)
        self._show_rest(None, end)
        return ""

    def peek(self, lease: Lease | None) -> None:
        """Show whole lines that were written so far by the job that runs."""
        end = os.fstat(self._fd).st_size
        if end > self._read:
            self._advance(lease, end)

    def crash_report(self) -> str:
        """The stack that the interpreter wrote as it died, if the last job's output ends with one."""
        end = os.fstat(self._fd).st_size
        # Not from what was not shown yet: a look between the report and the end of the process has shown it already.
        start = max(self._begin, end - CRASH_REPORT)
        _, found, report = os.pread(self._fd, end - start, start).rpartition(_CRASH_HEADER)
        return (found + report).decode("utf-8", "backslashreplace") if found else ""

    def piece(self, start: int) -> Piece:
        """The present job's output from byte `start` on, or as much of its end as is kept."""
        end = os.fstat(self._fd).st_size
        first = max(self._begin + max(0, start), end - STORED)
        data = os.pread(self._fd, max(0, end - first), first)
        # A character that is cut in two is left to whoever asks for the next piece.
        data = data[: len(data) - _unfinished(data)]
        return Piece(first - self._begin, first - self._begin + len(data), _text(data))

    def shed(self) -> bool:
        """Let go of what a flood has brought, but for its end; whether there was one."""
        end = os.fstat(self._fd).st_size
        if end - self._read <= FLOOD:
            return False
        self._dropped += end - READ_AT_ONCE - self._read
        self._read = end - READ_AT_ONCE
        self._punch()
        return True

    def _stored(self, end: int) -> str:
        start = max(self._begin, end - STORED)
        data = os.pread(self._fd, end - start, start)
        if start == self._begin:
            return _text(data)
        line = data.find(b"\n", 0, LONGEST_LINE) + 1
        return f"[{start - self._begin + line} bytes of output left out]\n{_text(data[line:])}"

    def _show_rest(self, lease: Lease | None, end: int) -> None:
        if end > self._read:
            self._advance(lease, end)
        self._flush(lease)
        self._begin = end

    def _advance(self, lease: Lease | None, end: int) -> None:
        if self._dropped:
            self._flush(lease)
            self._show(lease, f"[{self._dropped} bytes of output dropped]")
            self._dropped = 0
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
        end = max(0, self._read - STORED) // page * page
        if end > self._punched:
            # A file system that can't punch only keeps more; the file goes when its child does.
            size = ctypes.c_long(end - self._punched)
            _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(self._punched), size)
            self._punched = end


def users_part(report: str) -> str:
    """The report of a crash without what called the handler, which is ours and the same each time."""
    kept: list[str] = []
    has_frames = is_ours = False
    for line in report.splitlines(keepends=True):
        is_frame = line.startswith("  File ")
        is_ours = is_frame and (is_ours or (has_frames and _OURS in line))
        has_frames = is_frame and (has_frames or _OURS not in line)
        if not is_ours:
            kept.append(line)
    return "".join(kept)


def last_words(output: str, report: str) -> str:
    """The end of what a dead job wrote itself, without the interpreter's report of its death."""
    own = output.rpartition(report)[0] if report else output
    return own[-LAST_WORDS:]


def _text(data: bytes) -> str:
    return storable(data.decode("utf-8", "backslashreplace"))


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character of UTF-8 whose rest is missing."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # here a character begins
            needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return back if needed > back else 0
    return 0
