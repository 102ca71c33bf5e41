"""Where a child keeps what its running job says of itself: progress for whoever looks, a checkpoint for the next attempt."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tasuki_mp import payload, wire
from tasuki_mp.child.describe import storable
from tasuki_mp.errors import CheckpointError
from tasuki_mp.payload import FlawError
from tasuki_mp.statefile import CHECKPOINT_LIMIT, NOTE_LIMIT, Key, StateFile

_SLACK = 1e-6
"""What sums of fractions may be beyond 0 and 1."""


class Board:
    """One for each child, for one job after the other. `tell` sends a packet to the supervisor."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self.file = StateFile()
        self._tell = tell
        self._pid = os.getpid()
        self._checkpoint: tuple[Key, int, bytes] | None = None

    def progress(self, key: Key, fraction: float | None, note: str) -> None:
        """Say how far the job is."""
        self._refuse_other_process()
        if fraction is not None:
            if not -_SLACK <= fraction <= 1 + _SLACK:  # NaN fails this too
                raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
            fraction = min(max(float(fraction), 0.0), 1.0)
        self.file.write_progress(key, fraction, _bounded(note))

    def checkpoint(self, key: Key, state: Any, *, wait: bool) -> None:
        """Leave the state for the next attempt; with `wait`, return when it is on record."""
        self._refuse_other_process()
        try:
            text = payload.encode(state, limit=CHECKPOINT_LIMIT)
        except FlawError as flaw:
            raise CheckpointError(f"this state can't be kept: at {flaw.path}: {flaw.reason}") from None
        version = self.file.write_checkpoint(key, text)
        self._checkpoint = (key, version, text)
        if wait:
            self._tell(wire.pack(wire.Keep(*key, version)))
            if self.file.wait_for_reply(version).is_refused:
                raise CheckpointError("Postgres refused to store this state; the supervisor's log says why")

    def take(self, key: Key) -> str | None:
        """The checkpoint of the job that has just ended, for its outcome: None without one, empty if it is on record."""
        left, self._checkpoint = self._checkpoint, None
        if left is None or left[0] != key:
            return None
        return "" if self.file.reply().version >= left[1] else left[2].decode()

    def _refuse_other_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("progress and checkpoints are the job's own process's to write, not those of its pool")


def _bounded(note: str) -> bytes:
    text = storable(note).encode()
    return text if len(text) <= NOTE_LIMIT else text[:NOTE_LIMIT].decode("utf-8", "ignore").encode()
