"""When a child that works well is replaced all the same. The new one stands ready before the old one goes."""

from __future__ import annotations

from typing import Final

import msgspec

from tasuki_mp.limits import size

SPREAD: Final = 0.1
"""Children that were born together reach their age at different times, by up to this share of it."""
ALMOST: Final = 0.8
"""A child whose job took so much of its limit is replaced after it: the next one should not pay for what it left."""


class Recycling(msgspec.Struct, frozen=True):
    """What was asked for: jobs and seconds that a child may have behind it."""

    max_jobs: int | None = None
    max_age: float | None = None

    def reason(self, *, jobs: int, age: float, spread: float) -> str:
        """Why a child should be replaced, or an empty string. `spread` is a number from 0 to 1 of its own."""
        if self.max_jobs is not None and jobs >= self.max_jobs:
            return f"it has run {jobs} jobs"
        if self.max_age is not None and age >= self.max_age * (1 - SPREAD * spread):
            return f"it is {age:.0f} s old"
        return ""


def almost_full(peak: int | None, limit: int | None) -> str:
    """Why a child should be replaced after a job that took that much, or an empty string."""
    if peak is None or limit is None or peak < limit * ALMOST:
        return ""
    return f"its job took {size(peak)} of its limit of {size(limit)}"


def too_full(held: int, limit: int) -> str:
    """Why a child should be replaced before a job with that limit: what others left in it would be the job's."""
    if held < limit * ALMOST:
        return ""
    return f"it holds {size(held)}, and the next job may take {size(limit)}"
