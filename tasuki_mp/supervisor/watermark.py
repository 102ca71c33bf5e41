"""Where in each queue the next scan for due jobs may begin, so that it need not walk over dead index entries. Pure.

A long transaction anywhere in the database keeps the index entries of finished jobs alive; without a mark every lease walks
over all of them. Rows can appear behind the mark (a producer that committed late, a retry, a release), so the short scan
begins a little before it, and a full scan from the beginning sets it anew at least every half minute, busy or idle. As long
as there is more than is asked for, a scan goes on exactly where the last one ended, and only one in every second looks back:
of jobs that were enqueued together, all are due at the same instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from tasuki_mp.job import PRIORITIES, Lease

LOOK_BACK: Final = timedelta(milliseconds=100)
LOOK_BACK_EVERY: Final = 1.0
COLD: Final = 0.1
"""Seconds that the first look at everything may take for finding every cache cold."""
FULL_SCAN_EVERY: Final = 30.0
FULL_SCAN_SHARE: Final = 100.0
"""A full scan comes no sooner than this many times its own duration after the last one: it takes a hundredth of the time."""
FULL_SCAN_LEAST: Final = 1.0


class Position(NamedTuple):
    """A place in the lease index, within its queue and priority."""

    at: datetime
    id: int


class Watermarks:
    """The last place taken in each (queue, priority), and when the whole index was last looked at. Times in seconds."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, int], datetime] = {}
        self._ends: dict[tuple[str, int], Position] = {}
        """The last job taken in each."""
        self._looked_back_at = float("-inf")
        self._has_more = False
        """Whether the last scan gave all that was asked for, and nobody has spoken of jobs behind it since it began."""
        self._lowered: dict[str, datetime] = {}
        """Where jobs have become due again since the scan began that is under way: it may have passed them."""
        self._scanned_at = float("-inf")
        self._scan_took = 0.0

    def start_of(self, queue: str, priority: int, *, goes_on: bool = False) -> Position | None:
        """Behind which place a short scan begins, None for the beginning; if it goes on, right behind the last job."""
        if goes_on and (end := self._ends.get((queue, priority))) is not None:
            return end
        mark = self._marks.get((queue, priority))
        return None if mark is None else Position(mark - LOOK_BACK, 0)

    def may_go_on(self, at: float) -> bool:
        """Whether the next scan need not look back."""
        return self._has_more and at - self._looked_back_at < LOOK_BACK_EVERY

    def scan_begins(self) -> None:
        """What is heard of from now on, the scan may miss."""
        self._lowered.clear()

    def scanned(self, *, at: float, went_on: bool, has_more: bool) -> None:
        """A scan that began at that time has told its leases; `has_more` if it gave as many as were asked for."""
        self._has_more = has_more and not self._lowered
        if not went_on:
            self._looked_back_at = at

    def took(self, leases: Iterable[Lease], *, is_full: bool) -> None:
        """These leases were just given out. A full scan sets the marks, also backwards; a short one only advances them."""
        last: dict[tuple[str, int], Position] = {}
        for lease in leases:
            row, place = (lease.queue, lease.priority), Position(lease.scheduled_at, lease.id)
            last[row] = max(last.get(row, place), place)
        for row, place in last.items():
            before = self._marks.get(row)
            self._marks[row] = place.at if is_full or before is None else max(before, place.at)
        self._ends |= last
        self._lower_again()

    def found_none(self, queues: Iterable[str], *, at: datetime) -> None:
        """Nothing was due at that time of the database's clock, in a look at everything.

        Where that took long (over jobs of handlers that nobody here has, over dead entries), short scans begin there
        from now on. Else they may as well begin where they did, and find at once what a long transaction commits.
        """
        if self._scan_took * FULL_SCAN_SHARE > FULL_SCAN_LEAST:
            for queue in queues:
                for priority in PRIORITIES:
                    self._marks[queue, priority] = at
            self._lower_again()

    def lower(self, queue: str, *, to: datetime) -> None:
        """Somebody says that jobs of this queue have become due again, none before that time of the database's clock."""
        self._lowered[queue] = min(to, self._lowered.get(queue, to))
        self._lower(queue, to)
        self._has_more = False

    def _lower_again(self) -> None:
        for queue, to in self._lowered.items():
            self._lower(queue, to)

    def _lower(self, queue: str, to: datetime) -> None:
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
