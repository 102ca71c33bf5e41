"""Where in each queue the next scan for due jobs may begin, so that it need not walk over dead index entries. Pure.

A long transaction anywhere in the database keeps the index entries of finished jobs alive; without a mark every lease walks
over all of them. Rows can appear behind the mark (a producer that committed late, a retry, a release), so the short scan
begins a little before it, and a full scan from the beginning sets it anew at least every half minute, busy or idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from tasuki_mp.job import PRIORITIES, Lease

LOOK_BACK: Final = timedelta(milliseconds=100)
COLD: Final = 0.1
"""Seconds that the first look at everything may take for finding every cache cold."""
FULL_SCAN_EVERY: Final = 30.0
FULL_SCAN_SHARE: Final = 100.0
"""A full scan comes no sooner than this many times its own duration after the last one: it takes a hundredth of the time."""
FULL_SCAN_LEAST: Final = 1.0


class Watermarks:
    """The last place taken in each (queue, priority), and when the whole index was last looked at. Times in seconds."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, int], datetime] = {}
        self._scanned_at = float("-inf")
        self._scan_took = 0.0

    def start_of(self, queue: str, priority: int) -> datetime | None:
        """Where a short scan begins; None is the beginning."""
        mark = self._marks.get((queue, priority))
        return None if mark is None else mark - LOOK_BACK

    def took(self, leases: Iterable[Lease], *, is_full: bool) -> None:
        """These leases were just given out. A full scan sets the marks, also backwards; a short one only advances them."""
        last: dict[tuple[str, int], datetime] = {}
        for lease in leases:
            place = (lease.queue, lease.priority)
            last[place] = max(last.get(place, lease.scheduled_at), lease.scheduled_at)
        for place, at in last.items():
            before = self._marks.get(place)
            self._marks[place] = at if is_full or before is None else max(before, at)

    def found_none(self, queues: Iterable[str], *, at: datetime) -> None:
        """Nothing was due at that time of the database's clock, in a look at everything.

        Where that took long (over jobs of handlers that nobody here has, over dead entries), short scans begin there
        from now on. Else they may as well begin where they did, and find at once what a long transaction commits.
        """
        if self._scan_took * FULL_SCAN_SHARE > FULL_SCAN_LEAST:
            for queue in queues:
                for priority in PRIORITIES:
                    self._marks[queue, priority] = at

    def lower(self, queue: str, *, to: datetime) -> None:
        """Somebody says that jobs of this queue have become due again, none before that time of the database's clock."""
        for priority in PRIORITIES:
            mark = self._marks.get((queue, priority))
            if mark is not None and mark > to:
                self._marks[queue, priority] = to

    def full_scan_done(self, *, at: float, took: float) -> None:
        """What the first one takes is not all repeated by the next."""
        self._scan_took = took if self._scanned_at > float("-inf") else warm(took)
        self._scanned_at = at

    def may_full_scan(self, at: float) -> bool:
        """Whether a full scan, wanted because a short one came up empty, may come now."""
        return at >= self.next_full_scan()

    def next_full_scan(self) -> float:
        return self._scanned_at + max(FULL_SCAN_LEAST, FULL_SCAN_SHARE * self._scan_took)

    def must_full_scan(self, at: float) -> bool:
        """Whether one is due although jobs are being found."""
        return at - self._scanned_at >= max(FULL_SCAN_EVERY, FULL_SCAN_SHARE * self._scan_took)


def warm(seconds: float) -> float:
    """What the first look at everything would have taken, had the caches been warm: no more than that, at least."""
    return max(0.0, seconds - COLD)
