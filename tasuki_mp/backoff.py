"""How long a job waits before it is tried again: plain data, so that the supervisor can act without the application."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

MAX_DELAY = 100 * 365 * 86_400.0
"""No job is put off by more than a hundred years (seconds); the database refuses instants beyond that."""


class Backoff(msgspec.Struct, frozen=True):
    """A delay of `factor * attempt**power` seconds, at most `cap`, spread by ±`jitter` (a share from 0 to 1).

    The default is the fourth power of the attempt's number ±10 %: 1 s, 16 s, 81 s, 256 s, …, at most a day.
    """

    factor: float = 1.0
    power: float = 4.0
    cap: float = 86_400.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.factor <= MAX_DELAY and 0 <= self.power <= 16 and 0 <= self.cap <= MAX_DELAY):
            raise ValueError("Backoff: factor and cap must lie between 0 and a hundred years, power between 0 and 16")
        if not 0 <= self.jitter <= 1:
            raise ValueError("Backoff: jitter is a share between 0 and 1")

    def delay(self, attempt: int, *, random: Callable[[], float]) -> float:
        """Seconds to wait after `attempt` (from 1) failed; `random` gives a number in [0, 1)."""
        exact: float = min(self.cap, self.factor * float(attempt) ** self.power)
        return exact * (1 + self.jitter * (2 * random() - 1))
