"""A token bucket, so that anybody's notifications can wake the supervisor only so often. Pure."""

from __future__ import annotations


class Tokens:
    """Up to `burst` tokens, refilled at `per_second`. Times are seconds of one clock."""

    def __init__(self, *, burst: int, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._tokens = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """One token, if there is one."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a token, if none is taken meanwhile."""
        since = 0.0 if self._at is None else now - self._at
        return max(0.0, (1 - self._tokens) / self._per_second - since)

    def give_back(self) -> None:
        """The last reaction found work, so it costs nothing."""
        self._tokens = min(self._burst, self._tokens + 1)
