"""The one clock of a supervisor: seconds since boot, suspend included, which no change of the wall clock touches."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """CLOCK_BOOTTIME in seconds: the clock of leases and trust, and of the start times on a child's page."""
    return time.clock_gettime(_CLOCK)
