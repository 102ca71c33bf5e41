"""Named points of a supervisor's work where a test may stop it, or act; in production nothing happens there."""

from __future__ import annotations

from typing import Literal

Point = Literal[
    "after_lease_commit",
    "before_dispatch",
    "child_hello",
    "after_result",
    "before_finish",
    "after_finish_sent",
    "before_heartbeat",
    "before_rescue",
    "before_tick_commit",
    "after_tick_commit",
]


class Hooks:
    """The default: nothing. A test passes its own to `Supervisor`."""

    def reach(self, point: Point) -> None:
        """Called in the thread that does the work, at the named point of it."""
