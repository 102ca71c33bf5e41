"""Batches: their end, their numbers and follow-up jobs, whoever ends the last job; and jobs that wait for others."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import psycopg_pool
import pytest

from tasuki_mp import AsyncClient, BatchError, Client, Tasuki, batching
from tasuki_mp.store import batches
from tests.support import jobs
from tests.support.holder import Holder

Conn = psycopg.Connection[tuple[Any, ...]]

app = Tasuki()


@app.handler
def work(n: int = 0) -> None: ...


@app.handler
def after(why: str) -> None: ...


@pytest.fixture(autouse=True)
def no_batches(conn: Conn) -> None:
    conn.execute("TRUNCATE tasuki.batch, tasuki.dependency")


def _follow_ups(conn: Conn) -> list[str]:
    found = conn.execute("SELECT payload ->> 'why' FROM tasuki.job WHERE handler = 'after' ORDER BY id").fetchall()
    return [why for (why,) in found]


def _end(holder: Holder, *kinds: Any) -> None:
    """Lease that many jobs and end them so, each in a finish of its own."""
    leases = holder.lease(len(kinds))
    assert len(leases) == len(kinds)
    for lease, kind in zip(leases, kinds, strict=True):
        holder.end(lease, kind)


ALL = {"on_complete": after.job("complete"), "on_success": after.job("success"), "on_failure": after.job("failure")}


def test_a_batch_ends_with_its_last_job_and_its_follow_ups_come_once(client: Client, dsn: str, conn: Conn) -> None:
    batch = client.enqueue_batch((work.job(n) for n in range(3)), name="nightly", **ALL)
    status = batch.status()
    assert (status.name, status.total, status.pending, status.has_ended) == ("nightly", 3, 3, False)
    with Holder(dsn) as holder:
        _end(holder, "completed", "completed")
        assert holder.call(batches.close, ids=[batch.id]) == [(batch.id, 1)]
        assert _follow_ups(conn) == []
        _end(holder, "completed")
        assert holder.call(batches.close, ids=[batch.id]) == [(batch.id, 0)]
        assert holder.call(batches.close, ids=[batch.id]) == [(batch.id, None)]
    assert _follow_ups(conn) == ["complete", "success"]
    assert batch.wait(0).is_successful


def test_a_failed_job_makes_it_a_failure(client: Client, dsn: str, conn: Conn) -> None:
    batch = client.enqueue_batch([work.job(1), work.job(2)], **ALL)
    with Holder(dsn) as holder:
        _end(holder, "completed", "failed")
    status = batch.wait(0)
    assert (status.completed, status.failed, status.is_successful) == (1, 1, False)
    assert _follow_ups(conn) == ["complete", "failure"]


def test_failed_jobs_can_be_tried_again_and_succeed_then(client: Client, dsn: str, conn: Conn) -> None:
    batch = client.enqueue_batch([work.job(1), work.job(2)], **ALL)
    with Holder(dsn) as holder:
        _end(holder, "completed", "failed")
        batch.wait(0)
        assert batch.retry_failed() == 1
        status = batch.status()
        assert (status.has_ended, status.pending, status.completed, status.failed) == (False, 1, 1, 0)
        _end(holder, "completed")
    assert batch.wait(0).is_successful
    assert batch.retry_failed() == 0
    assert _follow_ups(conn) == ["complete", "failure", "success"]


def test_a_canceled_batch_has_ended(client: Client, conn: Conn) -> None:
    batch = client.enqueue_batch((work.job(n) for n in range(2500)), on_failure=after.job("failure"))
    assert batch.cancel() == 2500
    status = batch.wait(0)
    assert (status.canceled, status.is_successful) == (2500, False)
    assert _follow_ups(conn) == ["failure"]


def test_an_empty_batch_is_over_at_once(client: Client, conn: Conn) -> None:
    assert client.enqueue_batch([], on_success=after.job("nothing to do")).wait(0).is_successful
    assert _follow_ups(conn) == ["nothing to do"]


def test_a_batch_of_a_transaction_that_is_rolled_back_never_was(client: Client, conn: Conn) -> None:
    with conn.transaction(force_rollback=True):
        batch = client.enqueue_batch([work.job()], conn)
    with pytest.raises(BatchError):
        batch.status()
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)


def test_in_several_transactions_it_ends_only_when_the_last_was_added(client: Client, dsn: str) -> None:
    def broken() -> Any:
        yield from (work.job(n) for n in range(25))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        client.enqueue_batch(broken(), name="broken", chunk=10)
    (line,) = client.batches(name="broken")
    assert (line.total, line.is_sealed) == (20, False)
    with Holder(dsn) as holder:
        _end(holder, *["completed"] * 20)
    assert not client.batch(line.id).status().has_ended
    whole = client.enqueue_batch((work.job(n) for n in range(25)), chunk=10)
    assert (whole.status().total, whole.status().is_sealed) == (25, True)


def test_of_many_that_end_jobs_at_once_one_ends_the_batch(client: Client, dsn: str, conn: Conn) -> None:
    batch = client.enqueue_batch((work.job(n) for n in range(80)), **ALL)
    start = Barrier(4)

    def rush(_: int) -> None:
        with Holder(dsn) as holder:
            leases = holder.lease(20)
            start.wait()
            for lease in leases:
                holder.end(lease, "completed")
                holder.call(batches.close, ids=[batch.id])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rush, range(4)))
    assert batch.status().has_ended
    assert _follow_ups(conn) == ["complete", "success"]


def test_what_nobody_closed_is_found(client: Client, dsn: str) -> None:
    done, open_one = client.enqueue_batch([work.job()]), client.enqueue_batch([work.job()])
    with Holder(dsn) as holder:
        _end(holder, "completed")
        assert holder.call(batches.open_batches, limit=10) == [done.id]
    assert open_one.status().pending == 1


def test_waiting_hears_of_the_end(client: Client, dsn: str) -> None:
    batch = client.enqueue_batch([work.job()])
    with ThreadPoolExecutor(1) as pool, Holder(dsn) as holder:
        waiting = pool.submit(batch.wait, 40)
        _end(holder, "completed")
        holder.call(batches.close, ids=[batch.id])
        assert waiting.result().is_successful
    with pytest.raises(TimeoutError):
        client.enqueue_batch([work.job()]).wait(0)


def test_waiting_through_a_pool_of_one_connection_without_autocommit_hears_of_the_end(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other connection to look with, and a transaction that stays open would hear of nothing."""
    monkeypatch.setattr(batching, "FIRST_PAUSE", 3600.0)
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True, timeout=5) as pool, Holder(dsn) as holder:
        batch = Client(pool).enqueue_batch([work.job()])
        looks = batch.watch(40)
        assert next(looks).pending == 1
        _end(holder, "completed")
        holder.call(batches.close, ids=[batch.id])
        assert next(looks).is_successful
        looks.close()


def test_waiting_hears_of_the_end_with_asyncio_too(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "FIRST_PAUSE", 3600.0)

    async def use(holder: Holder) -> None:
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False, timeout=5) as pool:
            batch = await AsyncClient(pool).enqueue_batch([work.job()])
            looks = batch.watch(40)
            assert (await anext(looks)).pending == 1
            await asyncio.to_thread(_end, holder, "completed")
            await asyncio.to_thread(holder.call, batches.close, ids=[batch.id])
            assert (await anext(looks)).is_successful
            await looks.aclose()

    with Holder(dsn) as holder:
        asyncio.run(use(holder))


def test_it_is_the_same_for_asyncio(dsn: str, conn: Conn) -> None:
    async def use() -> None:
        async with AsyncClient(dsn) as client:
            batch = await client.enqueue_batch([work.job(1), work.job(2).unique("k")], name="async", **ALL)
            assert (await batch.status()).pending == 2
            with pytest.raises(TimeoutError):
                await batch.wait(0)
            await client.cancel([job_id for (job_id,) in conn.execute("SELECT id FROM tasuki.job").fetchall()])
            assert (await batch.wait(40)).canceled == 2
            assert await batch.retry_failed() == 2
            assert await batch.cancel() == 2
            assert (await batch.status()).has_ended
            assert [line.id for line in await client.batches(name="async")] == [batch.id]
            assert await client.batches(name="async", before=batch.id) == []

    asyncio.run(use())
    assert _follow_ups(conn) == ["complete", "failure"]


# ── jobs that wait for others ─────────────────────────────────────────────────────────────────────────────────────────


def _held(conn: Conn, job_id: int) -> str | None:
    row = jobs.live(conn, job_id)
    assert row is not None
    held: str | None = row["held_by"]
    return held


def test_a_chain_runs_in_order(client: Client, dsn: str, conn: Conn) -> None:
    handle = client.enqueue(work.job(1).then(work.job(2).then(work.job(3))))
    second, third = (follower.id for follower in handle.followers)
    with Holder(dsn) as holder:
        for expected in (handle.id, second, third):
            (lease,) = holder.lease(5)
            assert lease.id == expected
            holder.end(lease, "completed")
    assert conn.execute("SELECT count(*) FROM tasuki.dependency").fetchone() == (0,)


def test_fan_in_waits_for_all(client: Client, dsn: str, conn: Conn) -> None:
    ids = client.enqueue_many(work.job(n) for n in range(3))
    last = client.enqueue(work.job(9).depends_on(ids))
    with Holder(dsn) as holder:
        for _ in ids:
            assert _held(conn, last.id) == "dependency"
            (lease, *_) = holder.lease(1)
            holder.end(lease, "completed")
        assert _held(conn, last.id) is None
        assert [lease.id for lease in holder.lease(5)] == [last.id]


def test_fan_in_of_jobs_that_end_at_the_same_time(client: Client, dsn: str, conn: Conn) -> None:
    for _ in range(10):
        ids = list(client.enqueue_many(work.job(n) for n in range(2)))
        last = client.enqueue(work.job(9).depends_on(ids))
        with Holder(dsn) as one, Holder(dsn) as two:
            pairs = [(one, one.lease_one()), (two, two.lease_one())]
            start = Barrier(2)

            def end(pair: Any, start: Barrier = start) -> None:
                start.wait()
                pair[0].end(pair[1], "completed")

            with ThreadPoolExecutor(2) as pool:
                list(pool.map(end, pairs))
            assert _held(conn, last.id) is None
            one.end(one.lease_one(), "completed")


def test_what_waits_for_a_failure_is_canceled_with_all_that_waits_for_it(client: Client, dsn: str, conn: Conn) -> None:
    handle = client.enqueue(work.job(1).then(work.job(2).then(work.job(3))))
    with Holder(dsn) as holder:
        holder.end(holder.lease_one(), "failed")
    for follower in handle.followers:
        row = jobs.final(conn, follower.id)
        assert row is not None
        assert (row["status"], row["error"]["type"]) == ("canceled", "Dependency")


def test_what_wants_to_run_all_the_same_does(client: Client, dsn: str, conn: Conn) -> None:
    first = client.enqueue(work.job(1))
    clean_up = client.enqueue(work.job(2).depends_on([first.id], on_failure="run"))
    first.cancel()
    assert _held(conn, clean_up.id) is None


def test_jobs_that_have_ended_before_count(client: Client, dsn: str, conn: Conn) -> None:
    first, second = client.enqueue(work.job(1)), client.enqueue(work.job(2))
    with Holder(dsn) as holder:
        _end(holder, "completed", "failed")
    assert _held(conn, client.enqueue(work.job(3).depends_on([first.id])).id) is None
    canceled = client.enqueue(work.job(4).depends_on([first.id, second.id]))
    row = jobs.final(conn, canceled.id)
    assert row is not None
    assert row["status"] == "canceled"


def test_waiting_for_a_job_that_nobody_knows_is_refused(client: Client, conn: Conn) -> None:
    from tasuki_mp import DatabaseError

    with pytest.raises(DatabaseError, match="there is no such job"):
        client.enqueue(work.job(1).depends_on([987654321]))
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)


def test_a_canceled_dependent_waits_for_nothing(client: Client, dsn: str, conn: Conn) -> None:
    first = client.enqueue(work.job(1))
    last = client.enqueue(work.job(2).depends_on([first.id]))
    last.cancel()
    assert conn.execute("SELECT count(*) FROM tasuki.dependency").fetchone() == (0,)
    with Holder(dsn) as holder:
        _end(holder, "completed")
