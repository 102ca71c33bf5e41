"""How long jobs take, by handler: moving averages that decide how much work may wait near a child. Pure."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1
"""Share of the newest job in the average: the last twenty or so decide it."""


class Average:
    """An exponentially weighted mean of seconds; None until the first value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, seconds: float) -> None:
        self.value = seconds if self.value is None else self.value + _WEIGHT * (seconds - self.value)


class Estimates:
    """Moving averages of runtimes per handler, and over everything that ran."""

    def __init__(self) -> None:
        self._by_handler: dict[str, Average] = {}
        self._all = Average()
        self._payload = Average()

    def add(self, handler: str, seconds: float) -> None:
        """A job of this handler has just run that long."""
        average = self._by_handler.get(handler)
        if average is None:
            average = self._by_handler[handler] = Average()
        average.add(seconds)
        self._all.add(seconds)

    def of(self, handler: str) -> float | None:
        """Seconds a job of this handler takes, None when none has run yet."""
        average = self._by_handler.get(handler)
        return average.value if average else None

    def add_payload(self, size: int) -> None:
        """A job of this size (characters of payload) was leased."""
        self._payload.add(size)

    @property
    def payload_size(self) -> float:
        """Characters of payload that the next leased job is likely to have."""
        return self._payload.value or 0.0

    @property
    def overall(self) -> float | None:
        """Seconds the next leased job is likely to take, whatever its handler."""
        return self._all.value


def room_for_waiting(mean: float | None, *, slots: int, seconds: float, most: int) -> int:
    """How many jobs may wait beside the running ones: at most `seconds` of work for the host, none when unknown or long."""
    if mean is None or mean > seconds / 2:
        return 0
    return min(most, int(slots * seconds / max(mean, 1e-6)))
