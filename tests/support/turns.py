"""Tests of several workers run beside each other, but for those that have to be alone on the machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DOOR = Path(__file__).parent
_ROOM = Path(__file__).parents[1]


@contextmanager
def taken(*, alone: bool) -> Iterator[None]:
    """Once a test may run: together with those of other workers, or alone."""
    # Whoever wants to be alone keeps the door shut while the room empties; else it would never be empty.
    with _locked(_DOOR, fcntl.LOCK_EX) as door, _locked(_ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, how)
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough while a process that the test forked still has it
        os.close(fd)
