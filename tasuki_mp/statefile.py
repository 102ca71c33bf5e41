"""A running job's progress and checkpoint: a file in memory that its child writes and its supervisor reads beside it.

Each is kept in two areas that take turns, so that the one before stays whole while the next is written, and carries a
checksum: whoever is killed in the middle of a write has lost that write and no more. The file outlives the child.

    0       reply: which checkpoint is durable (written by the supervisor, all else by the child)
    1024    progress, twice 1024 bytes
    3072    headers of the checkpoints, twice 512 bytes
    4096    the checkpoints' JSON texts, twice 1 MiB
"""

from __future__ import annotations

import math
import mmap
import os
import select
import struct
import threading
from typing import Final, NamedTuple
from zlib import crc32

Key = tuple[int, int]

CHECKPOINT_LIMIT: Final = 1024 * 1024
"""Bytes of JSON text that a checkpoint may have."""
NOTE_LIMIT: Final = 900
"""Bytes of a progress note; what is longer is cut."""

_PROGRESS_AT: Final = (1024, 2048)
_HEADER_AT: Final = (3072, 3584)
_TEXT_AT: Final = (4096, 4096 + CHECKPOINT_LIMIT)
_HEAD: Final = 4096
_SIZE: Final = _TEXT_AT[1] + CHECKPOINT_LIMIT
_RECORD: Final = struct.Struct("<II")  # checksum and size of what follows
_REPLY: Final = struct.Struct("<Q")
_PROGRESS: Final = struct.Struct("<qqQd")  # job, lease_no, version, fraction (NaN: not said); the note follows
_HEADER: Final = struct.Struct("<qqQII")  # job, lease_no, version, size and checksum of the text
_TRIES: Final = 5


class Progress(NamedTuple):
    """How far a job says it is. A version names one word of one child; later ones are greater."""

    version: int
    fraction: float | None
    note: str


class Reply(NamedTuple):
    """What the supervisor has said last about this file's checkpoints."""

    version: int
    is_refused: bool


class StateFile:
    """The child's side: makes the file, and writes it without a system call. Threads may use it at the same time."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("tasuki-mp-state", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _SIZE)
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Rings when there is a new reply."""
        self._map = mmap.mmap(self.fd, _SIZE)
        # Reentrant: an exception out of a signal handler may come between taking and leaving it.
        self._lock = threading.RLock()
        self._waiting = threading.RLock()
        self._version = 0
        self._progress_turn = 0
        self._checkpoint_turn = 0

    def write_progress(self, key: Key, fraction: float | None, note: bytes) -> None:
        """Say how far the job is; the note is UTF-8 of at most `NOTE_LIMIT` bytes."""
        with self._lock:
            version = self._version + 1
            number = float("nan") if fraction is None else fraction
            self._put(_PROGRESS_AT[self._progress_turn], _PROGRESS.pack(*key, version, number) + note)
            # Only now: an interrupted write is repeated in the same area, and never spoils both.
            self._version = version
            self._progress_turn ^= 1

    def write_checkpoint(self, key: Key, text: bytes) -> int:
        """Leave this JSON text for the next attempt; returns its version."""
        if len(text) > CHECKPOINT_LIMIT:
            raise ValueError(f"a checkpoint of {len(text)} bytes; {CHECKPOINT_LIMIT} is the limit")
        with self._lock:
            version = self._version + 1
            turn = self._checkpoint_turn
            at = _TEXT_AT[turn]
            self._map[at : at + len(text)] = text
            self._put(_HEADER_AT[turn], _HEADER.pack(*key, version, len(text), crc32(text)))
            self._version = version
            self._checkpoint_turn ^= 1
            return version

    def reply(self) -> Reply:
        """Up to which version the supervisor has dealt with checkpoints."""
        return _reply(self._map[: _REPLY.size])

    def wait_for_reply(self, version: int) -> Reply:
        """Wait until the supervisor has dealt with that version, for as long as it takes."""
        poll = select.poll()
        poll.register(self.bell, select.POLLIN)
        with self._waiting:  # or two threads would take each other's rings; what is said later covers both
            while (reply := self.reply()).version < version:
                poll.poll()
                if self.reply().version < version:  # it rang for an earlier one
                    os.eventfd_read(self.bell)
        return reply

    def _put(self, at: int, record: bytes) -> None:
        self._map[at : at + _RECORD.size + len(record)] = _RECORD.pack(crc32(record), len(record)) + record


class StateReader:
    """The supervisor's side. Reads whatever is whole, trusts nothing, and never waits for the child."""

    def __init__(self, fd: int, bell: int) -> None:
        self._fd = fd
        self._bell = bell
        self.kept_progress = 0
        self.kept_checkpoint = 0
        """The versions that are on record, or were refused."""

    def progress(self, key: Key) -> Progress | None:
        """The job's last word; None if it has said nothing."""
        found: Progress | None = None
        head = os.pread(self._fd, _HEAD, 0)
        for at in _PROGRESS_AT:
            record = _whole(head, at, least=_PROGRESS.size)
            if record is None:
                continue
            *whose, version, number = _PROGRESS.unpack_from(record)
            if tuple(whose) == key and (found is None or version > found.version):
                note = record[_PROGRESS.size :].decode("utf-8", "replace")
                found = Progress(version, None if math.isnan(number) else number, note)
        return found

    def checkpoint_version(self, key: Key) -> int:
        """The version of the job's last checkpoint; 0 if it has none."""
        headers = self._headers(key)
        return headers[0][0] if headers else 0

    def checkpoint(self, key: Key) -> tuple[int, str] | None:
        """Version and text of the last checkpoint that is whole; None if there is none, or it changes too fast."""
        for _ in range(_TRIES):
            headers = self._headers(key)
            for version, turn, size, checksum in headers:
                text = os.pread(self._fd, size, _TEXT_AT[turn])
                if crc32(text) == checksum and len(text) == size:
                    return version, text.decode("utf-8", "replace")
            if not headers:
                return None
        return None

    def answer(self, version: int, *, is_refused: bool = False) -> None:
        """Tell the child that checkpoints up to this one are durable, or that this one never will be."""
        if self._fd < 0:
            return  # the child is gone, and its numbers may be another file's by now
        os.pwrite(self._fd, _REPLY.pack(version << 1 | is_refused), 0)
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """May be called twice."""
        for fd in (self._fd, self._bell):
            if fd >= 0:
                os.close(fd)
        self._fd = self._bell = -1

    def _headers(self, key: Key) -> list[tuple[int, int, int, int]]:
        """Version, area, size and checksum of each checkpoint of this lease, the newest first."""
        head = os.pread(self._fd, _HEAD, 0)
        found = []
        for turn, at in enumerate(_HEADER_AT):
            record = _whole(head, at, least=_HEADER.size)
            if record is None:
                continue
            *whose, version, size, checksum = _HEADER.unpack_from(record)
            if tuple(whose) == key and size <= CHECKPOINT_LIMIT:
                found.append((version, turn, size, checksum))
        return sorted(found, reverse=True)


def _whole(head: bytes, at: int, *, least: int) -> bytes | None:
    """The record in that area, unless it was never written or is just being written."""
    checksum, size = _RECORD.unpack_from(head, at)
    record = head[at + _RECORD.size : at + _RECORD.size + min(size, _PROGRESS.size + NOTE_LIMIT)]
    return record if len(record) >= least and crc32(record) == checksum else None


def _reply(packed: bytes) -> Reply:
    (word,) = _REPLY.unpack(packed)
    return Reply(word >> 1, bool(word & 1))
