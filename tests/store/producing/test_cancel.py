"""Canceling: what comes of it in each state, the same from Python, asyncio and SQL, and when somebody else is faster."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tasuki_mp import AsyncClient, Client, DatabaseError
from tests.store.producer_app import anything
from tests.support.holder import Holder
from tests.support.jobs import add, final, live
from tests.support.listening import heard, listening
from tests.support.waiting import wait_for_lock_wait

Conn = psycopg.Connection[Any]
Cancel = Callable[..., dict[int, str]]


@pytest.fixture(params=["Client", "AsyncClient", "SQL"])
def cancel(request: pytest.FixtureRequest, dsn: str) -> Cancel:
    def by_client(*ids: int) -> dict[int, str]:
        with Client(dsn) as client:
            return dict(client.cancel(ids))

    def by_async_client(*ids: int) -> dict[int, str]:
        async def run() -> dict[int, str]:
            async with AsyncClient(dsn) as client:
                return dict(await client.cancel(ids))

        return asyncio.run(run())

    def by_sql(*ids: int) -> dict[int, str]:
        with psycopg.connect(dsn, autocommit=True) as conn:
            return {i: verdict for i in ids for (verdict,) in conn.execute("SELECT tasuki.cancel(%s)", (i,))}

    return {"Client": by_client, "AsyncClient": by_async_client, "SQL": by_sql}[request.param]


def test_what_comes_of_it_in_each_state(cancel: Cancel, conn: Conn, one: Holder) -> None:
    done = add(conn)
    one.end(one.lease_one(), "completed", result="1")
    running = add(conn)
    lease = one.lease_one()
    pending = add(conn)
    assert cancel(running, pending, done, 999, pending + 1) == {
        pending: "canceled",
        running: "requested",
        done: "finished",
        999: "unknown",
        pending + 1: "unknown",
    }
    assert cancel(running, pending) == {pending: "finished", running: "requested"}
    assert one.beat(lease) == ["cancel"]
    row = live(conn, running)
    assert row is not None
    assert row["status"] == "running"


def test_a_canceled_job_is_archived_as_it_was(cancel: Cancel, conn: Conn, one: Holder) -> None:
    job_id = add(conn, payload={"x": [1]}, priority=3, max_attempts=4, queue="default")
    one.end(one.lease_one(), "retry", delay=3600.0)
    before = live(conn, job_id)
    assert before is not None
    assert cancel(job_id) == {job_id: "canceled"}
    assert live(conn, job_id) is None
    row = final(conn, job_id)
    assert row is not None
    kept = ("handler", "queue", "payload", "attempt", "max_attempts", "crashes", "priority", "lease_no")
    assert {name: row[name] for name in kept} == {name: before[name] for name in kept}
    assert (row["created_at"], row["scheduled_at"]) == (before["created_at"], before["scheduled_at"])
    assert (row["status"], row["owner"], row["result"]) == ("canceled", None, None)
    assert row["error"]["kind"] == "canceled"
    assert dt.timedelta(0) <= row["finished_at"] - row["created_at"] < dt.timedelta(minutes=1)


def test_the_supervisor_is_told_and_nobody_else(client: Client, dsn: str, conn: Conn, one: Holder) -> None:
    running = add(conn)
    one.lease_one()
    pending = add(conn)
    with listening(dsn, "tasuki_cancel") as listener:
        client.cancel([pending, running])
        assert heard(listener, "tasuki_cancel") == [str(one.owner)]


def test_repeated_ids_and_none_at_all(client: Client, conn: Conn) -> None:
    job_id = add(conn)
    assert client.cancel([job_id, job_id]) == {job_id: "canceled"}
    assert client.cancel([]) == {}


def test_many_at_once(client: Client) -> None:
    ids = client.enqueue_many(anything.job(x) for x in range(500))
    assert client.cancel(ids) == dict.fromkeys(ids, "canceled")


def test_it_is_undone_with_the_caller_s_transaction(client: Client, dsn: str, conn: Conn) -> None:
    handle = client.enqueue(anything.job())
    with psycopg.connect(dsn) as own:
        assert handle.cancel(own) == "canceled"
        assert (handle.status(own), handle.status()) == ("canceled", "pending")
        own.rollback()
    assert handle.status() == "pending"
    assert final(conn, handle.id) is None


@pytest.mark.usefixtures("own_database")
def test_a_missing_partition_is_made(cancel: Cancel, conn: Conn) -> None:
    day = "job_archive_failed_" + dt.datetime.now(dt.UTC).strftime("%Y%m%d")
    conn.execute(f"DROP TABLE tasuki.{day}")
    job_id = add(conn)
    assert cancel(job_id) == {job_id: "canceled"}
    assert final(conn, job_id) is not None


@pytest.mark.usefixtures("own_database")
def test_another_violation_is_an_error_and_cancels_nothing(client: Client, conn: Conn) -> None:
    conn.execute("ALTER TABLE tasuki.job_archive ADD CONSTRAINT never CHECK (status <> 'canceled')")
    job_id = add(conn)
    with pytest.raises(DatabaseError, match="never"):
        client.cancel([job_id])
    assert live(conn, job_id) is not None


@pytest.mark.parametrize(
    ("meanwhile", "verdict"),
    [
        ("finish", "finished"),
        ("lease", "requested"),
        ("delete", "unknown"),
        ("nothing", "canceled"),
    ],
)
def test_whoever_holds_the_row_is_waited_for(
    cancel: Cancel, dsn: str, conn: Conn, one: Holder, meanwhile: str, verdict: str
) -> None:
    job_id = add(conn)
    if meanwhile == "finish":
        one.lease_one()
    with psycopg.connect(dsn) as other:
        other.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (job_id,))
        answers: list[dict[int, str]] = []
        asking = threading.Thread(target=lambda: answers.append(cancel(job_id)))
        asking.start()
        wait_for_lock_wait(conn)
        if meanwhile == "finish":
            other.execute(
                "INSERT INTO tasuki.job_archive (id, handler, queue, status, payload, attempt, max_attempts, crashes,"
                " priority, created_at, scheduled_at, finished_at, lease_no, owner)"
                " SELECT id, handler, queue, 'completed', payload, attempt, max_attempts, crashes, priority, created_at,"
                " scheduled_at, now(), lease_no, owner FROM tasuki.job WHERE id = %s",
                (job_id,),
            )
        if meanwhile in {"finish", "delete"}:
            other.execute("DELETE FROM tasuki.job WHERE id = %s", (job_id,))
        if meanwhile == "lease":
            other.execute(
                "UPDATE tasuki.job SET status = 'running', owner = %s, attempt = 1, lease_no = 1,"
                " lease_expires_at = now() + interval '1 minute' WHERE id = %s",
                (one.owner, job_id),
            )
        other.commit()
        asking.join(timeout=90)
    assert answers == [{job_id: verdict}]
