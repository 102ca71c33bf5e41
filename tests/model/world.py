"""The database and the ledger side by side: each step happens in both, and they must agree on what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasuki_mp import store
from tasuki_mp.job import Lease
from tasuki_mp.outcome import SettledKind
from tests.model import audit
from tests.model.ledger import LEASE_FOR, Key, Ledger
from tests.support import jobs
from tests.support.holder import QUEUE, Holder, item

_EMPTY = """
    ALTER TABLE tasuki.job DISABLE TRIGGER audit;
    DELETE FROM tasuki.job;
    ALTER TABLE tasuki.job ENABLE TRIGGER audit;
    DELETE FROM tasuki.job_archive; DELETE FROM tasuki.attempt; DELETE FROM tasuki.queue; DELETE FROM audit.change;
"""


class World:
    """Two supervisors on one database. `books[n]` are the leases that supervisor n believes it holds, rightly or not."""

    def __init__(self, conn: psycopg.Connection[Any], holders: Sequence[Holder]) -> None:
        self.conn = conn
        self.holders = holders
        self.ledger = Ledger()
        self.books: list[dict[Key, Lease]] = [{} for _ in holders]
        for holder in holders:
            holder.owner = uuid4()
        conn.execute(_EMPTY)

    def enqueue(self, *, priority: int = 2, max_attempts: int = 3, delay: float = 0.0) -> int:
        due = self.conn.execute("SELECT clock_timestamp() + %s * interval '1 second'", (delay,)).fetchone()
        assert due is not None
        job_id = jobs.add(self.conn, priority=priority, max_attempts=max_attempts, scheduled_at=due[0])
        self.ledger.enqueue(job_id, priority=priority, max_attempts=max_attempts, delay=delay)
        return job_id

    def lease(self, who: int, limit: int = 1, *, is_reply_lost: bool = False) -> list[Lease]:
        leases = self.holders[who].lease(limit, lease_for=LEASE_FOR)
        assert [lease.key for lease in leases] == self.ledger.lease(who, limit)
        for lease in leases:
            job = self.ledger.jobs[lease.id]
            assert (lease.attempt, lease.max_attempts, lease.crashes) == (job.attempt, job.max_attempts, job.crashes)
        if not is_reply_lost:
            self.books[who].update({lease.key: lease for lease in leases})
        return leases

    def beat(self, who: int, *, is_forgetting: bool = True) -> None:
        holder, book = self.holders[who], self.books[who]
        beats = [store.Beat(*key) for key in book]
        answers = store.heartbeat(holder.beat_conn, owner=holder.owner, lease_for=LEASE_FOR, beats=beats)
        verdicts = {(job_id, lease_no): verdict for job_id, lease_no, verdict in answers}
        assert verdicts == self.ledger.beat(who, book)
        if is_forgetting:
            for key, verdict in verdicts.items():
                if verdict == "lost":
                    del book[key]

    def finish(
        self,
        who: int,
        ends: Sequence[tuple[Lease, SettledKind]],
        *,
        delay: float = 0.0,
        is_crash: bool = False,
        is_reply_lost: bool = False,
    ) -> None:
        """Finish these leases in one statement. With a lost reply they stay in the book, to be sent again."""
        items, expected = [], {}
        for lease, wanted in sorted(ends, key=lambda end: end[0].key):
            is_last = lease.attempt >= lease.max_attempts
            kind: SettledKind = "failed" if wanted == "retry" and is_last else wanted
            crash = is_crash and kind in {"retry", "failed"}
            put_off = 0.0 if kind == "release" else delay
            items.append(item(lease, kind, delay=put_off, is_crash=crash, lease_age=60.0))
            expected[lease.key] = self.ledger.finish(who, lease.key, kind, delay=put_off, is_crash=crash)
        answers = self.holders[who].finish(*items)
        assert {(a.id, a.lease_no): (a.verdict, a.kind) for a in answers} == expected
        for (job_id, lease_no), (verdict, kind_found) in expected.items():
            written = audit.traces(self.conn, job_id, lease_no, self.holders[who].owner, kind_found)
            assert written == (0 if verdict == "stale" else 1), f"{verdict}, and written {written} times"
        if not is_reply_lost:
            for key in expected:
                self.books[who].pop(key, None)

    def retry_without_an_attempt_left(self, who: int, lease: Lease) -> None:
        """A bug in a supervisor: the database does not take it."""
        if not self.ledger.jobs[lease.id].is_leased_as(who, lease.lease_no) or lease.attempt < lease.max_attempts:
            return
        if self.ledger.jobs[lease.id].is_cancel_requested:
            return
        with pytest.raises(psycopg.errors.CheckViolation) as raised:
            self.holders[who].finish(item(lease, "retry"))
        assert raised.value.diag.constraint_name == "job_attempt"

    def cancel(self, job_id: int) -> None:
        assert jobs.cancel(self.conn, job_id) == self.ledger.cancel(job_id)

    def advance(self, seconds: float) -> None:
        """Let that time pass: for the database it is everything else that moves into the past."""
        self.conn.execute(
            """UPDATE tasuki.job
                  SET scheduled_at = scheduled_at - %(by)s * interval '1 second',
                      lease_expires_at = lease_expires_at - %(by)s * interval '1 second'""",
            {"by": seconds},
        )
        self.ledger.advance(seconds)

    def rescue(self, who: int, *, is_gone: bool = False) -> None:
        """One takes back what the other held."""
        other = 1 - who
        rescued = self.holders[who].call(store.rescue, owners=[self.holders[other].owner], is_gone=is_gone, limit=100)
        assert {job.id: job.status for job in rescued} == self.ledger.rescue(other, is_gone=is_gone)

    def release_unknown(self, who: int) -> None:
        known = [job_id for job_id, _ in self.books[who]]
        assert self.holders[who].release_unknown(*known) == self.ledger.release_unknown(who, known)

    def pause(self, *, is_paused: bool) -> None:
        self.conn.execute(
            """INSERT INTO tasuki.queue (name, paused_at) VALUES (%(queue)s, CASE WHEN %(paused)s THEN now() END)
               ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at""",
            {"queue": QUEUE, "paused": is_paused},
        )
        self.ledger.is_paused = is_paused

    def meddle(self, job_id: int) -> None:
        """Somebody who wants a job to run again updates its status by hand, and nothing else. He is refused."""
        with contextlib.suppress(psycopg.errors.CheckViolation):
            self.conn.execute(
                "UPDATE tasuki.job SET status = 'pending' WHERE id = %s AND attempt < max_attempts", (job_id,)
            )

    def check(self) -> None:
        """Every row is as the ledger says, and nothing that happened on the way breaks a rule."""
        audit.check(self.conn)
        self.compare()

    def compare(self) -> None:
        """Every row is as the ledger says."""
        owners = {holder.owner: who for who, holder in enumerate(self.holders)}
        seen = {
            job_id: (status, attempt, crashes, lease_no, owners.get(owner), is_canceling)
            for job_id, status, attempt, crashes, lease_no, owner, is_canceling in self.conn.execute(
                """SELECT id, status, attempt, crashes, lease_no, owner, cancel_requested_at IS NOT NULL FROM tasuki.job
                    UNION ALL SELECT id, status, attempt, crashes, lease_no, NULL, NULL FROM tasuki.job_archive"""
            )
        }
        wanted = {
            job.id: (
                job.status,
                job.attempt,
                job.crashes,
                job.lease_no,
                job.owner,
                job.is_cancel_requested if job.is_live else None,
            )
            for job in self.ledger.jobs.values()
        }
        assert seen == wanted
