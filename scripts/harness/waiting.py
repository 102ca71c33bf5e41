"""Waiting for a fact, with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from scripts.harness import host

_LOOK_EVERY: Final = 0.1


def wait(
    fact: Callable[[], object],
    timeout: float,
    meanwhile: Callable[[], float | None] | None = None,
    *,
    every: float = _LOOK_EVERY,
) -> bool:
    """Whether the fact comes about in time. `meanwhile` is called before each look and may ask for an earlier next one."""
    never = threading.Event()
    deadline = host.now() + timeout
    while not fact():
        if host.now() >= deadline:
            return False
        again = meanwhile() if meanwhile is not None else None
        never.wait(every if again is None else min(every, again))
    return True
