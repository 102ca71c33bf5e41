"""The leaser: takes due jobs when there is room for them, woken by a freed slot, a notification, a due time or the poll.

One lease at a time, on its own connection. Short scans begin at the watermark; a full scan comes at least every half
minute. While nothing is due, the poll only asks when something will be, which looks at everything as a full scan does. The
same is asked when jobs have come that will be due before long.
Notifications are hints: throttled, and never relied on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.job import PRIORITIES, Lease
from tasuki_mp.limits import Reach
from tasuki_mp.store import upkeep, work
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, tasks, watermark
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.stride import Stride
from tasuki_mp.supervisor.tokens import Tokens
from tasuki_mp.supervisor.voice import Voice
from tasuki_mp.supervisor.watermark import Position, Watermarks

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

AFTER_NOTIFICATION: Final = 0.05
"""Seconds after the last notification when one more scan follows, for producers that throttle theirs to one in that time."""
LOOK_EVERY: Final = 5.0
"""Seconds after which a full scan first asks which queues have limits."""
DRY_FOR: Final = 0.05
"""Seconds after a scan that took all there was, for which room alone is no reason to look again; and no notification either,
if that was more than the host could start at once: where so many come, a few large leases do what many small ones would."""
SOONEST: Final = 0.01
"""No wait is shorter: a due time that is now is waited for this long, so that a row that can't be taken is no busy loop."""


class LeaserEvents(Protocol):
    """What the leaser asks of its supervisor."""

    def wants(self) -> int:
        """How many jobs there is room for now."""

    def reach(self) -> Reach:
        """Which jobs there is room for now. Those that it leaves out for now move no mark."""

    def leased(self, leases: list[Lease]) -> None:
        """These jobs are ours now, and in the book."""

    def leased_again(self, older: list[Lease]) -> None:
        """A database that lost commits has given out jobs that we hold already: the older runs must stop first."""

    def found_nothing(self) -> None:
        """A full scan came up empty: no known job is due."""


class Leaser:
    """Leases for the given queues (name → weight) until stopped."""

    def __init__(
        self,
        link: Link,
        *,
        owner: UUID,
        lease_for: float,
        poll: float,
        procs: int,
        queues: Mapping[str, int],
        book: LeaseBook,
        events: LeaserEvents,
        voice: Voice,
        metrics: Metrics,
        hooks: Hooks,
    ) -> None:
        self._link = link
        self._owner = owner
        self._lease_for = lease_for
        self._poll = poll
        self._procs = procs
        self._queues = list(queues)
        self._book = book
        self._events = events
        self._voice = voice
        self._metrics = metrics
        self._hooks = hooks
        self._stride = Stride(queues)
        self._marks = Watermarks()
        self._tokens = Tokens(burst=20, per_second=20)
        self._wake = asyncio.Event()
        self._is_full_wanted = True
        self._is_reply_lost = False
        self._dry_until = float("-inf")
        """Until when room alone is no reason to look."""
        self._is_crowded = False
        """Whether that scan took more than the host could start at once."""
        self._room_timer: asyncio.TimerHandle | None = None
        self._hint_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._due_at = float("inf")
        """When the next job was due, as of the last look."""
        self._next_look = float("-inf")
        """When we may look again: that takes a hundredth of the time at most."""
        self._is_look_wanted = False
        """Whether to ask first what is due and will be: time has brought us here, or we know of jobs that are not due yet."""
        self._limited: list[str] = []
        """Those of our queues that have limits, as of the last look."""
        self._looked_at = float("-inf")
        self._server_time: tuple[datetime, float] | None = None
        """The database's clock at the last look, and our own a moment later. There are no marks before that."""
        self._task: asyncio.Task[None] | None = None
        self.last_success = clock.now()

    def start(self) -> asyncio.Task[None]:
        """Begin; the task never ends by itself."""
        self._task = asyncio.create_task(self._lease_for_ever(), name="leaser")
        return self._task

    async def stop(self) -> None:
        """Lease no more. A lease that is on its way is abandoned: its rows are found and given back as unknown."""
        for timer in (self._room_timer, self._hint_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._room_timer = self._hint_timer = self._look_timer = None
        if self._task is not None:
            await tasks.end(self._task)
            self._task = None

    def serve(self, queues: Mapping[str, int]) -> None:
        """Lease from these queues from now on."""
        self._queues = list(queues)
        self._stride = Stride(queues)

    def room(self) -> None:
        """A slot or the buffer has room again."""
        rest = self._dry_until - clock.now()
        if rest <= 0:
            self._wake.set()
        elif self._room_timer is None:
            self._room_timer = asyncio.get_running_loop().call_later(rest, self._dry_no_more)

    def _dry_no_more(self) -> None:
        self._room_timer = None
        self._wake.set()

    def hint(self, *, queue: str, look_back: float) -> None:
        """Somebody says that jobs are due in this queue, or became due up to that many seconds ago."""
        if queue not in self._queues or not self._tokens.take(clock.now()):
            return
        if look_back > 0:
            self._is_full_wanted = True
            self._looked_at = float("-inf")
            if self._server_time is not None:
                then, at = self._server_time
                self._marks.lower(queue, to=then + timedelta(seconds=clock.now() - at - look_back))
        if self._is_crowded:
            self.room()
        else:
            self._wake.set()
        # Each of them is followed by a scan, so that only the last needs one more.
        if self._hint_timer is not None:
            self._hint_timer.cancel()
        self._hint_timer = asyncio.get_running_loop().call_later(AFTER_NOTIFICATION, self._wake.set)

    def hint_ahead(self, *, queue: str) -> None:
        """Somebody says that jobs will be due in this queue before long."""
        if queue in self._queues:
            self.look_ahead()

    def look_ahead(self) -> None:
        """Find out when the next job is due: sooner, it may be, than the last look has told."""
        self._is_look_wanted = True
        rest = self._next_look - clock.now()
        if rest <= 0:
            self._wake.set()
        elif self._look_timer is None:
            self._look_timer = asyncio.get_running_loop().call_later(rest, self._may_look)

    def _may_look(self) -> None:
        self._look_timer = None
        self._wake.set()

    def look_everywhere(self) -> None:
        """Scan from the beginning at the next opportunity: notifications may have been missed, or jobs were let go."""
        self._is_full_wanted = True
        self._wake.set()

    async def release_unknown(self) -> int:
        """Give back rows of ours that are not in the book: leases whose reply was lost. Never while one is in flight."""
        return await self._voice.send(lambda notify: self._link.call(self._release_unknown, notify=notify))

    async def _release_unknown(self, connection: Connection, *, notify: bool) -> int:
        # The book is read when it is this call's turn on the connection: no lease is between the database and it then.
        return await work.release_unknown(connection, owner=self._owner, known=self._book.ids(), notify=notify)

    async def _lease_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait = await self._lease_once()
            except UnavailableError as error:
                logs.event(logging.WARNING, "lease failed", error=str(error))
                await self._link.pause()
                self._is_full_wanted = self._is_reply_lost = True
                continue
            except psycopg.Error as error:
                # A lock held too long, a full disk, a deadlock: nothing was leased, and another try may do.
                logs.event(logging.WARNING, "lease refused", sqlstate=error.sqlstate, error=in_words(error))
                await self._link.pause()
                continue
            if wait > 0 and not await tasks.wait_at_most(self._wake, wait):
                self._is_look_wanted = True

    async def _lease_once(self) -> float:
        """One scan, if there is room; returns the seconds to wait for the next unless something wakes us."""
        if self._is_reply_lost:
            # What it leased may be committed by now. If that happens only later, the rescuer's rounds find it.
            if returned := await self.release_unknown():
                logs.event(logging.INFO, "unknown leases given back", jobs=returned)
            self._is_reply_lost = False
        wanted = self._events.wants()
        if wanted <= 0:
            return self._poll
        now = clock.now()
        has_looked = self._is_look_wanted and not self._limited and now >= self._next_look
        if has_looked:
            self._is_look_wanted = False
            ahead = await self._look_ahead()
            if not ahead.is_any_due and not self._limited:
                return self._until(ahead, since=now)
        is_full = self._marks.must_full_scan(now) or (self._is_full_wanted and self._marks.may_full_scan(now))
        leases = await self._scan(wanted, is_full=is_full)
        if leases:
            self._tokens.give_back()
            if clock.now() >= self._dry_until:
                return 0.0
        if leases or not is_full:
            self._is_full_wanted = True
            if leases and has_looked:
                self.look_ahead()  # these were due; others may be before long
            now = clock.now()
            later = min(self._marks.next_full_scan(), self._due_at if self._due_at > now else float("inf")) - now
            return max(SOONEST, min(later, self._poll)) if later > 0 else 0.0
        self._is_full_wanted = False
        ahead = await self._look_ahead()
        self._is_full_wanted = True
        return self._until(ahead, since=now)

    def _until(self, ahead: upkeep.Ahead, *, since: float) -> float:
        """Seconds to wait after a look at everything, begun at `since`, which found nothing to take."""
        self._events.found_nothing()
        now = clock.now()
        self._marks.full_scan_done(at=now, took=now - since)
        if ahead.is_any_due:
            return SOONEST
        if self._events.reach().is_whole:
            self._marks.found_none(self._queues, at=ahead.looked_at)
        return self._poll if ahead.seconds is None else max(SOONEST, min(ahead.seconds, self._poll))

    async def _look_ahead(self) -> upkeep.Ahead:
        """When the next job is due, as far as that can be said; learns by the way which queues have limits."""
        began = clock.now()
        ahead = await self._link.call(upkeep.next_due, queues=self._queues, reach=self._events.reach())
        self._looked_at = clock.now()
        took = self._looked_at - began
        if self._server_time is None:
            took = watermark.warm(took)
        self._next_look = self._looked_at + watermark.FULL_SCAN_SHARE * took
        self._due_at = float("inf") if ahead.seconds is None else self._looked_at + ahead.seconds
        self._server_time = (ahead.looked_at, self._looked_at)
        if ahead.limited != self._limited:
            self._limited = ahead.limited
            self.look_everywhere()
        return ahead

    async def _scan(self, wanted: int, *, is_full: bool) -> list[Lease]:
        began = clock.now()
        if is_full and began - self._looked_at > LOOK_EVERY:
            await self._look_ahead()
        order = self._stride.order(self._queues)
        quotas = self._stride.quotas(order, wanted)
        started = clock.now()
        self._marks.scan_begins()
        goes_on = not is_full and self._marks.may_go_on(started)
        entries = [
            _entry(
                queue,
                priority,
                behind=None if is_full else self._marks.start_of(queue, priority, goes_on=goes_on),
                limit=min(wanted, quotas[queue]),
            )
            for queue in order
            for priority in PRIORITIES
        ]
        reach = self._events.reach()
        leases = await self._link.call(self._lease, entries=entries, reach=reach, limit=wanted)
        for queue in self._limited:
            if room := min(wanted - len(leases), quotas[queue]):
                leases += await self._link.call(self._lease_limited, queue=queue, reach=reach, limit=room)
        ended = clock.now()
        self.last_success = ended
        self._metrics.lease_took(ended - started, len(leases))
        if is_full:
            self._marks.full_scan_done(at=ended, took=ended - began)
        self._marks.scanned(at=started, went_on=goes_on, has_more=reach.is_whole and len(leases) >= wanted)
        if reach.is_whole:
            self._marks.took(leases, is_full=is_full)
            if not self._limited and len(leases) < wanted and not _is_any_cut(leases, quotas):
                self._dry_until = ended + DRY_FOR
                self._is_crowded = len(leases) > self._procs
        if leases:
            self._stride.took(Counter(lease.queue for lease in leases))
            self._hooks.reach("after_lease_commit")
            self._events.leased(leases)
        return leases

    async def _lease(
        self, connection: Connection, *, entries: list[work.LeaseEntry], reach: Reach, limit: int
    ) -> list[Lease]:
        leases = await work.lease(
            connection,
            owner=self._owner,
            lease_for=self._lease_for,
            entries=entries,
            reach=reach,
            limit=limit,
            sent_at=clock.now(),
        )
        return self._take_in(leases)

    async def _lease_limited(self, connection: Connection, *, queue: str, reach: Reach, limit: int) -> list[Lease]:
        return self._take_in(
            await work.lease_limited(
                connection,
                owner=self._owner,
                lease_for=self._lease_for,
                queue=queue,
                reach=reach,
                limit=limit,
                sent_at=clock.now(),
            )
        )

    def _take_in(self, leases: list[Lease]) -> list[Lease]:
        # A database that lost our lease gives out its number again: that is what the job runs under, or has ended under.
        for lease in (again := self._book.confirm(leases)):
            logs.event(logging.WARNING, "job leased again under the same number, its run goes on", **lease.facts())
        if again:
            leases = [lease for lease in leases if lease not in again]
        # Into the book before the connection is free again: whoever looks for unknown rows of ours must know these.
        older = self._book.add(leases)
        if older:
            self._events.leased_again(older)
        return leases


def _entry(queue: str, priority: int, *, behind: Position | None, limit: int) -> work.LeaseEntry:
    if behind is None:
        return work.LeaseEntry(queue=queue, priority=priority, limit=limit)
    return work.LeaseEntry(queue=queue, priority=priority, after_at=behind.at, after_id=behind.id, limit=limit)


def _is_any_cut(leases: list[Lease], quotas: Mapping[str, int]) -> bool:
    """Whether a queue gave as many as it was asked for, so that it may have more."""
    return any(count >= quotas[queue] for queue, count in Counter(lease.queue for lease in leases).items())
