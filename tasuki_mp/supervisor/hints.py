"""Reactions to notifications that cost a statement each: the first at once, and only so many however often it is notified.

What comes too soon is not dropped but made up for, once for all of it, as soon as that may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.tokens import Tokens

BURST: Final = 5
PER_SECOND: Final = 5.0
"""A beat writes every lease, and a look at the schedules reads them all: a flood must not make that the host's work."""
_LEAST: Final = 0.001
"""Seconds: what is left of a wait after rounding may be too little for a clock to move."""


class Hints:
    """Calls `react` on the loop, for each hint or for many of them."""

    def __init__(self, react: Callable[[], None]) -> None:
        self._react = react
        self._tokens = Tokens(burst=BURST, per_second=PER_SECOND)
        self._timer: asyncio.TimerHandle | None = None

    def hint(self) -> None:
        """Somebody has notified."""
        if self._timer is None:  # else the reaction that is to come is one to this as well
            self._react_or_wait()

    def stop(self) -> None:
        """Make up for nothing more. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _react_or_wait(self) -> None:
        self._timer = None
        now = clock.now()
        if self._tokens.take(now):
            self._react()
        else:
            wait = max(_LEAST, self._tokens.wait(now))
            self._timer = asyncio.get_running_loop().call_later(wait, self._react_or_wait)
