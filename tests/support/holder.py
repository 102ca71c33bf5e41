"""A supervisor as far as the database can tell: an owner with connections that leases, beats and finishes on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import psycopg

from tasuki_mp import store
from tasuki_mp.job import Lease
from tasuki_mp.limits import Reach
from tasuki_mp.outcome import ErrorInfo, Settled, SettledKind

T = TypeVar("T")

LEASE_FOR = 60.0
QUEUE = "default"
HANDLER = "work"


class Holder:
    """Blocking, one thing at a time; use it in a thread of its own where two holders shall meet in the database."""

    def __init__(self, dsn: str, *, prepare_threshold: int | None = 5) -> None:
        self.owner: UUID = uuid4()
        self._runner = asyncio.Runner()
        self.conn: psycopg.AsyncConnection[tuple[Any, ...]] = self._runner.run(store.connect_async(dsn, name="holder"))
        self.conn.prepare_threshold = prepare_threshold
        self.beat_conn = store.connect(dsn, name="holder heartbeat")
        self.beat_conn.prepare_threshold = prepare_threshold

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self.conn.close)
        self._runner.close()
        self.beat_conn.close()

    def run(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Call a coroutine function of the store on this holder's connection, or any other without one."""

        async def call() -> T:
            return await function(*args, **kwargs)

        return self._runner.run(call())

    def call(self, function: Callable[..., Awaitable[T]], **kwargs: Any) -> T:
        """Call a coroutine function of the store on this holder's connection."""
        return self.run(function, self.conn, **kwargs)

    def lease(
        self,
        limit: int = 1,
        *,
        entries: Sequence[store.LeaseEntry] | None = None,
        handlers: Sequence[str] = (HANDLER,),
        reach: Reach | None = None,
        lease_for: float = LEASE_FOR,
        now: datetime | None = None,
    ) -> list[Lease]:
        """Up to `limit` leases out of the queue "default", whatever the priority."""
        if entries is None:
            entries = [store.LeaseEntry(queue=QUEUE, priority=priority, limit=limit) for priority in range(4)]
        return self.call(
            store.lease,
            owner=self.owner,
            lease_for=lease_for,
            entries=entries,
            reach=reach or Reach(tuple(handlers)),
            limit=limit,
            sent_at=0.0,
            now=now,
        )

    def lease_one(self) -> Lease:
        (lease,) = self.lease()
        return lease

    def finish(self, *items: store.FinishItem) -> list[store.Finished]:
        return self.call(store.finish, owner=self.owner, items=items)

    def end(self, lease: Lease, kind: SettledKind, **more: Any) -> tuple[str, str]:
        """Finish one lease; the verdict and the kind on record."""
        (finished,) = self.finish(item(lease, kind, **more))
        assert (finished.id, finished.lease_no) == lease.key
        return finished.verdict, finished.kind

    def beat(self, *leases: Lease, now: datetime | None = None) -> list[str]:
        """Heartbeat; the verdicts in the order of the leases."""
        beats = [store.Beat(lease.id, lease.lease_no) for lease in leases]
        answers = store.heartbeat(self.beat_conn, owner=self.owner, lease_for=LEASE_FOR, beats=beats, now=now)
        verdicts: dict[tuple[int, int], str] = {(job_id, lease_no): verdict for job_id, lease_no, verdict in answers}
        assert len(verdicts) == len(leases)
        return [verdicts[lease.key] for lease in leases]

    def rescue(self, *owners: UUID, is_gone: bool = False, limit: int = 100, now: datetime | None = None) -> list[str]:
        """Rescue from these owners; what became of each job."""
        rescued = self.call(store.rescue, owners=owners, is_gone=is_gone, limit=limit, now=now)
        return [job.status for job in rescued]

    def release_unknown(self, *known: int) -> int:
        return self.call(store.release_unknown, owner=self.owner, known=known)

    def register(self, **changes: Any) -> store.SupervisorRow:
        row = store.SupervisorRow(
            **{
                "owner": self.owner,
                "host": "here",
                "pid": 100,
                "pid_started": 12345,
                "boot_id": "boot",
                "pid_ns": "4026531836",
                "version": "0",
                "procs": 2,
                "queues": [QUEUE],
                "handlers": [HANDLER],
                "lease_seconds": LEASE_FOR,
                **changes,
            }
        )
        self.run(store.register, self.conn, row)
        return row


def item(
    lease: Lease,
    kind: SettledKind,
    *,
    result: str | None = None,
    error: ErrorInfo | None = None,
    delay: float = 0.0,
    is_crash: bool = False,
    **more: Any,
) -> store.FinishItem:
    settled = Settled(kind=kind, result=result, error=error, delay=delay, is_crash=is_crash)
    return store.FinishItem(id=lease.id, lease_no=lease.lease_no, settled=settled, **more)
