"""Many jobs: by COPY, all or none, with their ids in order, in constant memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg.rows import dict_row

from tasuki_mp import AsyncClient, Client, DatabaseError, IdRanges, Job, State
from tasuki_mp.store import copying
from tests.store.producer_app import anything, thumbnail, typed
from tests.support.listening import heard, listening

Conn = psycopg.Connection[Any]
EnqueueMany = Callable[[Iterator[Job]], IdRanges]


@pytest.fixture(params=["sync", "async"])
def enqueue_many(request: pytest.FixtureRequest, dsn: str) -> EnqueueMany:
    """Both clients, each on a connection of its own."""

    def sync(jobs: Iterator[Job]) -> IdRanges:
        with Client(dsn) as client:
            return client.enqueue_many(jobs)

    def twin(jobs: Iterator[Job]) -> IdRanges:
        async def run() -> IdRanges:
            async with AsyncClient(dsn) as client:
                return await client.enqueue_many(jobs)

        return asyncio.run(run())

    return sync if request.param == "sync" else twin


def rows(conn: Conn) -> list[dict[str, Any]]:
    return conn.cursor(row_factory=dict_row).execute("SELECT * FROM tasuki.job ORDER BY id").fetchall()


def xs(conn: Conn) -> dict[int, Any]:
    return {row["id"]: row["payload"]["x"] for row in rows(conn)}


def numbered(count: int) -> Iterator[Job]:
    return (anything.job(x) for x in range(count))


def test_the_ids_come_back_in_the_order_of_the_jobs(
    enqueue_many: EnqueueMany, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)
    ids = enqueue_many(numbered(95))
    assert xs(conn) == dict(zip(ids, range(95), strict=True))
    assert len(ids.ranges) == 1


def test_ids_that_others_drew_meanwhile_are_left_out(
    enqueue_many: EnqueueMany, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)

    def jobs() -> Iterator[Job]:
        for x in range(35):
            conn.execute("SELECT nextval('tasuki.job_id_seq')")
            yield anything.job(x)

    ids = enqueue_many(jobs())
    assert xs(conn) == dict(zip(ids, range(35), strict=True))
    assert len(ids.ranges) > 2
    row = conn.execute("SELECT nextval('tasuki.job_id_seq')").fetchone()
    assert row is not None
    assert row[0] not in ids


@pytest.mark.usefixtures("own_database")
def test_holes_within_a_draw_make_ranges(client: Client, conn: Conn) -> None:
    conn.execute("ALTER SEQUENCE tasuki.job_id_seq INCREMENT BY 3")
    ids = client.enqueue_many(numbered(5))
    assert xs(conn) == dict(zip(ids, range(5), strict=True))
    assert [len(each) for each in ids.ranges] == [1] * 5


def test_the_rows_are_those_that_enqueue_inserts(enqueue_many: EnqueueMany, client: Client, conn: Conn) -> None:
    when = dt.datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    jobs = [
        thumbnail.job(Path("a ü\U0001f600.png"), width=-3),
        thumbnail.job(Path("")).priority(0).at(when),
        typed.job(1e300, 2**70, "\x7f\u2028\ufffe", b"\0\xff", when).after(days=365 * 99),
        typed.job(5e-324, -(2**63), "'\"\\", b"").at(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        anything.job({"a": [None, True, {"": "x" * 100_000}]}).priority(3),
    ]
    one_by_one = [client.enqueue(job).id for job in jobs]
    together = enqueue_many(iter(jobs))
    found = {row["id"]: row for row in rows(conn)}
    assert len(found) == 10
    for job, single, many in zip(jobs, one_by_one, together, strict=True):
        a, b = found[single], found[many]
        assert a.keys() == b.keys()
        due_a, due_b = (row["scheduled_at"] if job.row.scheduled_at else None for row in (a, b))
        assert due_a == due_b
        for row in (a, b):
            late = row["scheduled_at"] - row["created_at"] - dt.timedelta(seconds=job.row.delay)
            assert job.row.scheduled_at is not None or abs(late) < dt.timedelta(seconds=5)
        assert {k: v for k, v in a.items() if k not in {"id", "scheduled_at", "created_at"}} == {
            k: v for k, v in b.items() if k not in {"id", "scheduled_at", "created_at"}
        }


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 5, 25])
def test_all_or_none(enqueue_many: EnqueueMany, conn: Conn, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)

    def jobs() -> Iterator[Job]:
        yield from numbered(after)
        raise BrokenError

    with pytest.raises(BrokenError):
        enqueue_many(jobs())
    assert rows(conn) == []


def test_what_is_no_job_is_refused_and_nothing_inserted(enqueue_many: EnqueueMany, conn: Conn) -> None:
    with pytest.raises(TypeError, match="no Job"):
        enqueue_many(iter([anything.job(), None]))  # type: ignore[list-item]  # the mistake itself
    assert rows(conn) == []


@pytest.mark.usefixtures("own_database")
def test_the_database_refuses_all_or_nothing(enqueue_many: EnqueueMany, conn: Conn) -> None:
    conn.execute("ALTER TABLE tasuki.job ADD CONSTRAINT small CHECK ((payload ->> 'x')::integer < 3)")
    with pytest.raises(DatabaseError, match="SQLSTATE 23514"):
        enqueue_many(numbered(5))
    assert rows(conn) == []


def test_an_error_of_the_jobs_own_database_is_not_ours(enqueue_many: EnqueueMany, conn: Conn) -> None:
    def jobs() -> Iterator[Job]:
        yield anything.job()
        raise pg.UndefinedTable("the application's own")

    with pytest.raises(pg.UndefinedTable, match="the application's own"):
        enqueue_many(jobs())
    assert rows(conn) == []


def test_in_the_callers_transaction_a_failure_takes_back_the_jobs_alone(
    dsn: str, client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)

    def jobs() -> Iterator[Job]:
        yield from numbered(25)
        raise BrokenError

    conn.execute("CREATE TABLE purchase (id integer)")
    with psycopg.connect(dsn) as own:
        own.execute("INSERT INTO purchase VALUES (1)")
        with pytest.raises(BrokenError):
            client.enqueue_many(jobs(), own)
        own.commit()
    assert conn.execute("SELECT id FROM purchase").fetchall() == [(1,)]
    assert rows(conn) == []


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_the_caller_s_transaction_is_never_committed(dsn: str, client: Client, conn: Conn, is_autocommit: bool) -> None:
    with psycopg.connect(dsn, autocommit=is_autocommit) as own:
        if is_autocommit:
            own.execute("BEGIN")
        ids = client.enqueue_many(numbered(3), own)
        assert own.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert client.status(ids[0]) is None
        assert client.status(ids[0], own) is State.PENDING
        own.execute("ROLLBACK" if is_autocommit else "SELECT 1")
        assert rows(conn) == []


def test_a_connection_in_autocommit_inserts_all_at_once(
    dsn: str, client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)
    seen: list[int] = []

    def jobs() -> Iterator[Job]:
        for job in numbered(25):
            seen.append(len(rows(conn)))
            yield job

    with psycopg.connect(dsn, autocommit=True) as own:
        client.enqueue_many(jobs(), own)
        assert own.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert set(seen) == {0}
    assert len(rows(conn)) == 25


def test_jobs_may_be_read_from_the_same_connection(dsn: str, client: Client, conn: Conn) -> None:
    with psycopg.connect(dsn) as own:
        jobs = (anything.job(x) for (x,) in own.execute("SELECT generate_series(1, 30000)"))
        assert len(client.enqueue_many(jobs, own)) == 30_000
    assert len(rows(conn)) == 30_000


def test_no_jobs_need_no_database() -> None:
    assert len(Client("postgresql://nobody@127.0.0.1:1/nothing").enqueue_many([])) == 0


def test_each_queue_is_told_once_with_how_far_to_look_back(
    dsn: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "CHUNK_JOBS", 10)

    def jobs(listener: Conn) -> Iterator[Job]:
        for x in range(15):
            yield anything.job(x)
            yield thumbnail.job(Path("a"))
        listener.execute("SELECT pg_sleep(0.05)")
        yield anything.job().priority(0)

    with listening(dsn, "tasuki_job") as listener:
        client.enqueue_many(jobs(listener))
        client.enqueue_many([anything.job().after(hours=1)])
        told = [payload.split() for payload in heard(listener, "tasuki_job")]
    assert [queue for queue, _ in told] == ["default", "images"]
    assert all(50 <= int(look_back) < 60_000 for _, look_back in told)


def test_large_payloads_make_small_chunks() -> None:
    def sizes(jobs: Iterable[Job]) -> list[int]:
        rows = iter([job.row for job in jobs])
        return [len(chunk) for chunk in iter(lambda: copying.chunk_of(rows), [])]

    assert sizes(anything.job("x" * 1_000_000) for _ in range(10)) == [5, 5]
    assert sizes(numbered(25_000)) == [10_000, 10_000, 5_000]


def test_a_generator_of_many_jobs_takes_constant_memory(client: Client, conn: Conn) -> None:
    job = anything.job("x" * 50)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            ids = client.enqueue_many(job for _ in range(count))
            assert len(ids) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(20_000), peak(80_000)
    assert many < few + 1_000_000
    assert many < 20_000_000
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (100_000,)
