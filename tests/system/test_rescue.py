"""Who may take whose leases, and when: after outages, in races, under clocks that jump."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from tasuki_mp.limits import Reach
from tasuki_mp.store import upkeep, work
from tasuki_mp.supervisor import identity, rescue
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.heartbeat import Heartbeat
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.rescue import Rescuer, has_served_quarantine
from tasuki_mp.supervisor.voice import Voice
from tests.support import invariants, jobs, outages
from tests.support.door import Door
from tests.support.holder import Holder
from tests.support.hooked import Supervised, supervisors
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]

LEASE = 60.0


class Party:
    """The parts of a supervisor that prolong its own leases and rescue others', driven step by step."""

    def __init__(self, dsn: str, index: int) -> None:
        # Another host each, whose processes nobody here can look at.
        me = identity.own_row(procs=1, queues=["default"], handlers=["work"], lease=LEASE)
        self.me = msgspec.structs.replace(me, host=f"host-{index}", boot_id=f"boot-{index}")
        self.book = LeaseBook(lease_for=LEASE)
        self.link = Link(dsn, name=f"party {index}", timeout=10)
        self.heartbeat = Heartbeat(
            dsn, owner=self.me.owner, lease_for=LEASE, book=self.book, on_verdicts=lambda _: None, hooks=Hooks()
        )
        self.rescuer = Rescuer(
            self.link,
            me=self.me,
            heartbeat=self.heartbeat,
            release_unknown=self._release_unknown,
            sweep=_nothing,
            voice=Voice(is_wanted=True),
            look_everywhere=lambda: None,
            hooks=Hooks(),
        )

    async def lease(self) -> None:
        entry = work.LeaseEntry(queue="default", priority=2, limit=1)
        self.book.add(
            await self.link.call(
                work.lease,
                owner=self.me.owner,
                lease_for=LEASE,
                entries=[entry],
                reach=Reach(("work",)),
                limit=1,
                sent_at=0.0,
            )
        )

    def beat(self) -> bool:
        return self.heartbeat._beat(self.book.beats(at=0.0))

    async def _release_unknown(self) -> int:
        return await self.link.call(work.release_unknown, owner=self.me.owner, known=self.book.ids())

    async def close(self) -> None:
        if self.heartbeat._connection is not None:
            self.heartbeat._connection.close()
        await self.link.close()


@asynccontextmanager
async def parties(dsn: str, conn: Conn, count: int) -> AsyncIterator[list[Party]]:
    """That many, each alive and with one running job."""
    made = [Party(dsn, index) for index in range(count)]
    try:
        for party in made:
            jobs.add(conn)
            await party.link.call(upkeep.register, party.me)
            await party.lease()
            assert party.beat()
        yield made
    finally:
        for party in made:
            await party.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def let_time_pass(conn: Conn, seconds: float) -> None:
    """As if that long ago had been now when everything in the tables was last written."""
    conn.execute("UPDATE tasuki.job SET lease_expires_at = lease_expires_at - %s * interval '1 s'", (seconds,))
    conn.execute("UPDATE tasuki.supervisor SET seen_at = seen_at - %s * interval '1 s'", (seconds,))


def owners(conn: Conn) -> set[Any]:
    return {owner for (owner,) in conn.execute("SELECT owner FROM tasuki.job WHERE status = 'running'").fetchall()}


async def stolen_after_an_outage(dsn: str, conn: Conn) -> int:
    """How many running jobs are taken from ten supervisors that come back one after the other, the last one last."""
    async with parties(dsn, conn, 10) as made:
        before = owners(conn)
        assert len(before) == 10
        with outages.outage(dsn, conn):
            for party in made:
                assert not party.beat(), "the connection is gone"
            let_time_pass(conn, 2 * LEASE)
        for party in made:
            assert party.beat(), "connected anew"
            with pytest.raises(UnavailableError):  # this connection was cut too, and is made anew by the next call
                await party.rescuer.look_around()
            await party.rescuer.look_around()
        return len(before - owners(conn))


def test_ten_that_come_back_after_an_outage_steal_nothing(dsn: str, conn: Conn) -> None:
    assert asyncio.run(stolen_after_an_outage(dsn, conn)) == 0


def test_without_the_quarantine_they_would(dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "has_served_quarantine", lambda **_: True)
    assert asyncio.run(stolen_after_an_outage(dsn, conn)) > 0


def test_one_that_stayed_away_is_rescued_once_somebody_has_been_there_for_a_lease(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with parties(dsn, conn, 2) as (here, away):
            let_time_pass(conn, 2 * LEASE)
            assert here.beat()
            await here.rescuer.look_around()
            assert owners(conn) == {here.me.owner, away.me.owner}, "for all it knows, it was away itself"
            here.heartbeat.unbroken_since = here.heartbeat.last_success - LEASE - 1
            monkeypatch.setattr(upkeep, "postmaster_uptime", lambda _: _soon(LEASE + 1))
            await here.rescuer.look_around()
            assert owners(conn) == {here.me.owner}
            listed = conn.execute("SELECT owner FROM tasuki.supervisor").fetchall()
            assert listed == [(here.me.owner,)]
            # The other one was only frozen. It lives, and says so again.
            assert away.beat()
            await away.rescuer.look_around()
            listed = conn.execute("SELECT owner FROM tasuki.supervisor ORDER BY started_at").fetchall()
            assert listed == [(here.me.owner,), (away.me.owner,)]
            assert owners(conn) == {here.me.owner}

    run(scenario())


async def _nothing() -> None:
    """What there is to do about batches here."""


async def _soon(value: float) -> float:
    return value


def test_one_with_a_longer_lease_has_that_much_time_to_come_back(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(upkeep, "postmaster_uptime", lambda _: _soon(1e6))
        async with parties(dsn, conn, 2) as (here, away):
            conn.execute("UPDATE tasuki.supervisor SET lease_seconds = 600 WHERE owner = %s", (away.me.owner,))
            let_time_pass(conn, 1200)
            assert here.beat()
            here.heartbeat.unbroken_since = here.heartbeat.last_success - 599
            await here.rescuer.look_around()
            assert owners(conn) == {here.me.owner, away.me.owner}
            here.heartbeat.unbroken_since = here.heartbeat.last_success - 601
            await here.rescuer.look_around()
            assert owners(conn) == {here.me.owner}

    run(scenario())


def test_a_gap_between_heartbeats_starts_the_quarantine_anew(dsn: str, conn: Conn) -> None:
    async def scenario() -> None:
        async with parties(dsn, conn, 1) as (party,):
            heartbeat = party.heartbeat
            first = heartbeat.unbroken_since
            assert party.beat() and heartbeat.unbroken_since == first
            heartbeat.last_success -= LEASE  # frozen since then
            assert party.beat()
            assert first is not None and heartbeat.unbroken_since is not None and heartbeat.unbroken_since > first
            assert outages.terminate(conn, "heartbeat") == 1
            assert not party.beat()
            assert heartbeat.unbroken_since is None
            assert party.beat()
            assert heartbeat.unbroken_since == heartbeat.last_success

    run(scenario())


@pytest.mark.parametrize(
    ("unbroken_for", "server_up_for", "expected"), [(61, 61, True), (59, 61, False), (61, 59, False), (0, 0, False)]
)
def test_the_quarantine_is_a_lease_long_for_both(unbroken_for: float, server_up_for: float, expected: bool) -> None:
    assert has_served_quarantine(unbroken_for=unbroken_for, server_up_for=server_up_for, lease_for=LEASE) is expected


def test_killed_while_it_rescues_the_next_one_rescues(dsn: str, conn: Conn) -> None:
    with Door() as door:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        with Supervised(dsn) as first:
            door.visitor()
            first.kill()
        with Supervised(dsn, gates=["before_rescue"]) as second:
            second.gate()
            second.kill()
        with Supervised(dsn) as third:
            visitor = door.visitor()
            assert visitor.attempt == 2
            visitor.tell("return at last")
            assert jobs.wait_final(conn, job_id)["status"] == "completed"
            assert third.stop() == 0
    invariants.check(conn, [job_id])


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)])
def test_a_clock_of_the_database_that_jumps_breaks_nothing(dsn: str, conn: Conn, jump: timedelta) -> None:
    """Forward, leases are rescued early, and the first owner's outcome is stale; back, they are rescued late."""
    job_id = jobs.add(conn, scheduled_at=datetime.now(UTC) - timedelta(days=3))
    then = datetime.now(UTC) + jump
    with Holder(dsn) as one, Holder(dsn) as two:
        lease = one.lease_one()
        if jump > timedelta():
            assert two.rescue(one.owner, now=then) == ["pending"]
            assert one.beat(lease) == ["lost"]
            jobs_again = two.lease(now=then)
            assert [(again.id, again.attempt) for again in jobs_again] == [(job_id, 2)]
            assert one.end(lease, "completed")[0] == "stale"
            assert two.end(jobs_again[0], "completed")[0] == "applied"
        else:
            jobs.expire(conn, job_id)
            assert two.rescue(one.owner, now=then) == []
            assert one.beat(lease, now=then) == ["held"]
            assert one.end(lease, "completed")[0] == "applied"
    assert jobs.status(conn, job_id) == "completed"
    invariants.check(conn, [job_id])


def test_two_supervisors_share_the_work_and_no_job_runs_twice(dsn: str, conn: Conn) -> None:
    count = 300
    with supervisors(dsn, 2, procs=1) as pair:
        with conn.transaction():
            ids = [jobs.add(conn, handler="note") for _ in range(count)]
        conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
        wait_until(lambda: conn.execute("SELECT count(*) FROM tasuki.job_archive").fetchone() == (count,))
        for supervised in pair:
            assert supervised.stop() == 0
    assert conn.execute(
        "SELECT count(DISTINCT id) FROM tasuki.job_archive WHERE status = 'completed' AND attempt = 1"
    ).fetchone() == (count,)
    invariants.check(conn, ids)
