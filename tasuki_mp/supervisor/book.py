"""The book of leases: every lease this supervisor holds, wherever its job is, and how far each can be trusted.

Written by the loop, read by the heartbeat's thread too; a lock guards it, since the heartbeat must go on while the loop is
blocked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import msgspec

from tasuki_mp.job import Lease
from tasuki_mp.store.work import Beat
from tasuki_mp.supervisor.child import Child

Key = tuple[int, int]


class Held(msgspec.Struct, eq=False, gc=False):
    """One lease in the book. `child` is set while its frame is with a child; `is_noted` once the row says where it runs."""

    lease: Lease
    trusted_from: float
    child: Child | None = None
    is_noted: bool = False


class LeaseBook:
    """Leases held: waiting, running, or in the outbox."""

    def __init__(self, *, lease_for: float) -> None:
        self._lease_for = lease_for
        self._held: dict[int, Held] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return self.get(key) is not None

    def add(self, leases: Iterable[Lease]) -> list[Lease]:
        """Enter new leases; returns older ones of the same jobs, which a database that lost commits has given out again."""
        with self._lock:
            replaced = []
            for lease in leases:
                if (older := self._held.get(lease.id)) is not None:
                    replaced.append(older.lease)
                self._held[lease.id] = Held(lease, lease.sent_at)
            return replaced

    def get(self, key: Key) -> Held | None:
        """The entry of exactly this lease."""
        held = self._held.get(key[0])
        return held if held is not None and held.lease.lease_no == key[1] else None

    def remove(self, keys: Iterable[Key]) -> None:
        """These leases are over."""
        with self._lock:
            for key in keys:
                if self.get(key) is not None:
                    del self._held[key[0]]

    def confirm(self, leases: Iterable[Lease]) -> list[Lease]:
        """Take note of leases that came a second time under their number; returns those of which that is true."""
        with self._lock:
            known = []
            for lease in leases:
                if (held := self.get(lease.key)) is not None:
                    held.trusted_from = max(held.trusted_from, lease.sent_at)
                    held.is_noted = False
                    known.append(lease)
            return known

    def unassign(self, lease: Lease) -> bool:
        """No child has this lease's frame any more; False if the lease is not ours any more either.

        A later one under the same number, from a database that lost commits, is another lease.
        """
        held = self.get(lease.key)
        if held is None or held.lease is not lease:
            return False
        held.child = None
        return True

    def ids(self) -> list[int]:
        """The ids of all jobs in the book."""
        with self._lock:
            return list(self._held)

    def fresh(self, key: Key, *, at: float) -> Held | None:
        """The entry, if less than half of the lease has passed since it was surely ours: only then is its job dispatched."""
        held = self.get(key)
        return held if held is not None and at - held.trusted_from < self._lease_for / 2 else None

    def is_trusted(self, key: Key, *, at: float, margin: float) -> bool:
        """Whether the lease surely has not expired."""
        held = self.get(key)
        return held is not None and at < held.trusted_from + self._lease_for - margin

    def beats(self, *, at: float) -> list[Beat]:
        """A beat for every lease, ids ascending; those running for a second say where, until that is written."""
        with self._lock:
            entries = sorted(self._held.items())
        return [_beat(held, at) for _, held in entries]

    def young_beats(self, *, at: float) -> list[Beat]:
        """Beats only for jobs whose row does not say yet where they run, though they have run for a second."""
        with self._lock:
            entries = sorted(
                (id, held) for id, held in self._held.items() if held.child is not None and not held.is_noted
            )
        return [beat for _, held in entries if (beat := _beat(held, at)).pid is not None]

    def renewed(self, keys: Iterable[Key], *, sent_at: float, noted: Iterable[Key]) -> None:
        """The database has prolonged these leases in answer to a heartbeat sent then."""
        with self._lock:
            for key in keys:
                if (held := self.get(key)) is not None:
                    held.trusted_from = max(held.trusted_from, sent_at)
            for key in noted:
                if (held := self.get(key)) is not None:
                    held.is_noted = True


def _beat(held: Held, at: float) -> Beat:
    lease, child = held.lease, held.child
    if held.is_noted or child is None:
        return Beat(id=lease.id, lease_no=lease.lease_no)
    entered = child.entered_at(lease.key)
    if entered is None or at - entered < 1.0:
        return Beat(id=lease.id, lease_no=lease.lease_no)
    return Beat(id=lease.id, lease_no=lease.lease_no, pid=child.pid, slot=child.slot, ran_for=at - entered)
