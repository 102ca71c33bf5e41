"""Unique keys: which job stands when another comes with the same key, one by one, in bulk, from SQL, and at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, ConflictError, Tasuki
from tasuki_mp.job import Job
from tasuki_mp.store import copying
from tests.support import jobs
from tests.support.holder import Holder, item
from tests.support.waiting import wait_for_lock_wait

Conn = psycopg.Connection[tuple[Any, ...]]

app = Tasuki()


@app.handler
def work(tenant: str, page: int = 0) -> None: ...


def _keys(conn: Conn) -> list[str]:
    return [key for (key,) in conn.execute("SELECT key FROM tasuki.unique_key ORDER BY key")]


def test_the_job_that_was_there_stands(client: Client) -> None:
    first = client.enqueue(work.job("a").unique())
    second = client.enqueue(work.job("a").unique())
    other = client.enqueue(work.job("b").unique())
    assert (first.is_new, second.is_new, other.is_new) == (True, False, True)
    assert second.id == first.id != other.id


def test_the_key_can_be_made_of_some_arguments() -> None:
    one, two = work.job("a", 1).unique(["tenant"]), work.job("a", 2).unique(["tenant"])
    assert one.row.unique == two.row.unique
    assert work.job("a", 1).unique().row.unique != work.job("a", 2).unique().row.unique
    with pytest.raises(ValueError, match="not in the payload: colour"):
        work.job("a").unique(["colour"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"key": ""}, "a key is a text"),
        ({"key": "a\nb"}, "a key is a text"),
        ({"scope": 3}, "scope is 'live' or a timedelta"),
        ({"scope": timedelta(0)}, "scope must be"),
        ({"on_conflict": "ignore"}, "on_conflict is"),
    ],
)
def test_what_can_be_no_key_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        work.job("a").unique(**arguments)


def test_a_job_with_followers_that_stands_is_not_new(client: Client) -> None:
    job = work.job("a").unique("k").then(work.job("b"))
    first, second = client.enqueue(job), client.enqueue(job)
    assert (first.is_new, len(first.followers)) == (True, 1)
    assert (second.id, second.is_new, second.followers) == (first.id, False, ())


def test_a_key_is_free_once_its_job_has_ended(client: Client, dsn: str, conn: Conn) -> None:
    first = client.enqueue(work.job("a").unique("k"))
    with Holder(dsn) as holder:
        lease = holder.lease_one()
        assert client.enqueue(work.job("a").unique("k")).id == first.id
        holder.end(lease, "retry")
        assert client.enqueue(work.job("a").unique("k")).id == first.id
        holder.end(holder.lease_one(), "completed")
    assert _keys(conn) == []
    assert client.enqueue(work.job("a").unique("k")).is_new


def test_a_canceled_job_frees_its_key(client: Client) -> None:
    first = client.enqueue(work.job("a").unique("k"))
    first.cancel()
    assert client.enqueue(work.job("a").unique("k")).is_new


def test_a_key_over_an_interval_outlives_its_job(client: Client, conn: Conn) -> None:
    job = work.job("a").unique("k", scope=timedelta(hours=1))
    first = client.enqueue(job)
    first.cancel()
    assert client.enqueue(job).id == first.id
    conn.execute("UPDATE tasuki.unique_key SET expires_at = now() - interval '1 second'")
    assert client.enqueue(job).is_new


def test_replacing_changes_a_pending_job_and_no_running_one(client: Client, dsn: str, conn: Conn) -> None:
    first = client.enqueue(work.job("a", 1).unique("k"))
    again = client.enqueue(work.job("a", 2).priority(0).unique("k", on_conflict="replace"))
    assert again.id == first.id
    row = jobs.live(conn, first.id)
    assert row is not None
    assert (row["payload"]["page"], row["priority"]) == (2, 0)
    with Holder(dsn) as holder:
        holder.lease_one()
        client.enqueue(work.job("a", 3).unique("k", on_conflict="replace"))
    row = jobs.live(conn, first.id)
    assert row is not None
    assert row["payload"]["page"] == 2


def test_a_conflict_can_be_an_error_that_leaves_the_callers_transaction_alone(client: Client, conn: Conn) -> None:
    first = client.enqueue(work.job("a").unique("k"))
    with conn.transaction():
        with pytest.raises(ConflictError) as caught:
            client.enqueue(work.job("a").unique("k", on_conflict="raise"), conn)
        assert caught.value.job_id == first.id
        client.enqueue(work.job("b"), conn)
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (2,)


def test_in_bulk_each_key_is_inserted_once_and_the_ids_are_those_that_stand(client: Client, conn: Conn) -> None:
    standing = client.enqueue(work.job("t3").unique("t3"))

    def batch() -> list[Job]:
        return [work.job(f"t{n % 5}").unique(f"t{n % 5}") if n % 2 else work.job("plain", n) for n in range(40)]

    ids = list(client.enqueue_many(batch()))
    assert len(ids) == 40
    assert len(set(ids)) == 20 + 5
    assert ids[3] == standing.id
    assert ids[1] == ids[11] == ids[21]
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (1 + 20 + 4,)


def test_a_conflict_in_bulk_leaves_nothing_behind(client: Client, conn: Conn) -> None:
    client.enqueue(work.job("a").unique("k"))
    with pytest.raises(ConflictError, match="has the unique key 'work:k' already"):
        client.enqueue_many([work.job("b"), work.job("a").unique("k", on_conflict="raise")])
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (1,)


def test_from_sql_it_is_the_same_key(client: Client, conn: Conn) -> None:
    first = client.enqueue(work.job("a").unique("k"))

    def enqueue(on_conflict: str) -> tuple[Any, ...] | None:
        return conn.execute(
            """SELECT tasuki.enqueue('work', '{"tenant": "a"}', queue => 'default', unique_key => 'k', on_conflict => %s)""",
            [on_conflict],
        ).fetchone()

    assert enqueue("skip") == (first.id,)
    with pytest.raises(psycopg.errors.UniqueViolation, match=f"job {first.id} has the unique key"):
        enqueue("raise")


def test_of_many_at_once_one_is_inserted(dsn: str, conn: Conn) -> None:
    start = Barrier(6)

    def rush(_: int) -> list[int]:
        with Client(dsn) as client:
            start.wait()
            return [client.enqueue(work.job("a").unique(f"k{n}")).id for n in range(20)]

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(rush, range(6)))
    assert all(each == ids[0] for each in ids)
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (20,)


def test_a_transaction_that_found_a_job_standing_does_not_keep_it_from_ending(client: Client, dsn: str) -> None:
    job = work.job("a").unique()
    first = client.enqueue(job)
    with Holder(dsn) as holder, psycopg.connect(dsn) as producer:
        lease = holder.lease_one()
        assert client.enqueue(job, producer).id == first.id
        holder.run(holder.conn.execute, "SET lock_timeout = '5s'")
        (done,) = holder.finish(item(lease, "completed"))
        assert done.verdict == "applied"
        assert client.enqueue(job, producer).is_new


def test_what_should_replace_a_job_that_is_canceled_meanwhile_is_enqueued(client: Client, dsn: str, conn: Conn) -> None:
    first = client.enqueue(work.job("a", 1).unique("k"))
    with psycopg.connect(dsn) as canceler, ThreadPoolExecutor(1) as pool:
        canceler.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", [first.id])
        replacing = pool.submit(client.enqueue, work.job("a", 2).unique("k", on_conflict="replace"))
        wait_for_lock_wait(conn)
        canceler.execute("SELECT tasuki.cancel(%s)", [first.id])
        canceler.commit()
        second = replacing.result()
    assert second.is_new
    row = jobs.live(conn, second.id)
    assert row is not None
    assert row["payload"]["page"] == 2


def test_two_batches_with_the_same_keys_in_any_order_do_not_deadlock(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 30)
    # Those of capitals come first by code points, and in other places by the rules of most languages.
    keys = [f"{'kK'[n % 2]}{n}" for n in range(200)]
    middle = Barrier(2)

    def rush(order: list[str]) -> list[int]:
        def meeting() -> Iterator[Job]:
            for number, key in enumerate(order):
                if number == 150:
                    middle.wait(30)
                yield work.job("a").unique(key)

        with Client(dsn) as client:
            return list(client.enqueue_many(meeting()))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(rush, [keys, keys[::-1]])
    assert first == second[::-1]
    assert len(set(first)) == 200
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (200,)


def test_of_a_key_in_several_chunks_the_first_job_stands(
    client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)
    ids = list(client.enqueue_many(work.job("t", n).unique(f"k{n % 7}") for n in range(95)))
    assert ids == [ids[n % 7] for n in range(95)]
    pages = conn.execute("SELECT payload ->> 'page' FROM tasuki.job ORDER BY id").fetchall()
    assert [int(page) for (page,) in pages] == list(range(7))


def test_when_the_maker_of_many_fails_nothing_is_left(
    client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)

    def broken() -> Iterator[Job]:
        yield from (work.job("t", n).unique(f"k{n}") for n in range(35))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.enqueue_many(broken())
    assert _keys(conn) == []
