"""Follow-up jobs on their way from the handler that asked for them to the transaction that finishes its attempt.

A few travel inside the outcome's frame. Many are spooled to an unlinked file whose descriptor travels with it, so that a
million of them take no memory on either side.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, ClassVar, Final, cast

import msgspec

from tasuki_mp.job import Job, JobRow, row_of

MOST_INLINE: Final = 1000
INLINE_BYTES: Final = 256 * 1024
"""Characters of payload that travel inline at most: the supervisor keeps them in memory."""

_LENGTH: Final = struct.Struct("!I")
_READ_AT_ONCE: Final = 1 << 18
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes | memoryview], JobRow] = msgspec.msgpack.Decoder(JobRow).decode


class SpoolError(ValueError):
    """A spool is not what a child of ours writes."""


class FollowUps:
    """In a child: the jobs that one run of a handler asks for. Safe to use from several threads."""

    __slots__ = ("_failure", "_rows", "_size", "_spool", "count")

    _lock: ClassVar = threading.Lock()
    """One for all: it is made for every job, and a child runs one at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[JobRow] = []
        self._size = 0
        self._spool: BinaryIO | None = None
        self._failure: BaseException | None = None

    def add(self, job: Job) -> None:
        """Remember this job. Raises TypeError for what is none, OSError when there is no room for so many."""
        row = row_of(job)
        with self._lock:
            self.count += 1
            if self._spool is None:
                self._rows.append(row)
                self._size += len(row.payload)
                if len(self._rows) <= MOST_INLINE and self._size <= INLINE_BYTES:
                    return
                rows, self._rows = self._rows, []
            else:
                rows = [row]
            try:
                if self._spool is None:
                    self._spool = cast("BinaryIO", tempfile.TemporaryFile(buffering=1 << 18))  # noqa: SIM115  see close
                for each in rows:
                    record = _encode(each)
                    self._spool.write(_LENGTH.pack(len(record)) + record)
            except BaseException as error:  # no room, or an interrupt: a job may stand there by half
                self._failure = error
                raise

    def take(self) -> tuple[list[JobRow], int | None]:
        """What was asked for: jobs, or the descriptor of their spool, to be kept open until `close`.

        Raises what kept one of them from being written down, whatever the handler made of that.
        """
        if self.count == 0:
            return [], None
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._spool is None:
                return self._rows, None
            self._spool.flush()
            return [], self._spool.fileno()

    def close(self) -> None:
        """Let go of the spool; whoever got its descriptor has a copy."""
        if self._spool is not None:
            try:
                self._spool.close()
            except OSError:  # what it could not write is the failure that add() has raised
                return


class Spool:
    """In a supervisor: the file that a child has passed on. It may be read more than once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def rows(self) -> Iterator[JobRow]:
        """The jobs in it. Raises SpoolError."""
        rest = b""
        offset = 0
        while True:
            # The offset of the descriptor itself is shared with the child.
            piece = os.pread(self._fd, _READ_AT_ONCE, offset)
            if not piece:
                if rest:
                    raise SpoolError(f"the list of follow-up jobs ends within a job, after {offset} bytes")
                return
            offset += len(piece)
            buffer = rest + piece
            view = memoryview(buffer)
            start = 0
            while start + _LENGTH.size <= len(buffer):
                (length,) = _LENGTH.unpack_from(buffer, start)
                end = start + _LENGTH.size + length
                if end > len(buffer):
                    break
                try:
                    yield _decode(view[start + _LENGTH.size : end])
                except msgspec.MsgspecError as error:
                    raise SpoolError(f"the list of follow-up jobs has what is no job: {error}") from error
                start = end
            rest = buffer[start:]

    def close(self) -> None:
        """Let go of it. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
