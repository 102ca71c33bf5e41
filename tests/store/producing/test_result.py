"""Waiting for a job's result: what comes of each end, the same with and without asyncio, and what it costs others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql

from tasuki_mp import AsyncClient, Client, JobCanceledError, JobFailedError, UnknownJobError, results
from tasuki_mp.outcome import ErrorInfo, ErrorKind
from tests.store.producer_app import anything
from tests.support.holder import Holder
from tests.support.jobs import add, cancel
from tests.support.listening import heard, listening
from tests.support.waiting import wait_for_row

Conn = psycopg.Connection[Any]
Result = Callable[..., Any]
WAITING = "SELECT job_id FROM tasuki.waiter"


@pytest.fixture(params=["sync", "async"])
def result(request: pytest.FixtureRequest, dsn: str) -> Result:
    """`result(job_id, timeout)`, with both clients."""

    def sync(job_id: int, *arguments: Any, **more: Any) -> Any:
        with Client(dsn) as client:
            return results.wait(client, job_id, *_defaults(*arguments, **more))

    def twin(job_id: int, *arguments: Any, **more: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(dsn) as client:
                return await results.wait_async(client, job_id, *_defaults(*arguments, **more))

        return asyncio.run(run())

    return sync if request.param == "sync" else twin


def _defaults(timeout: float | None = 45, kind: Any = Any) -> tuple[float | None, Any]:
    return timeout, kind


def test_what_the_handler_returned(result: Result, conn: Conn, one: Holder) -> None:
    job_id = add(conn)
    one.end(one.lease_one(), "completed", result='{"path": "a/b", "sizes": [1, 2.5, null]}')
    assert result(job_id) == {"path": "a/b", "sizes": [1, 2.5, None]}
    assert result(job_id, kind=dict[str, Any])["path"] == "a/b"
    other = add(conn)
    one.end(one.lease_one(), "completed", result='"a/b"')
    assert result(other, kind=Path) == Path("a/b")
    nothing = add(conn)
    one.end(one.lease_one(), "completed")
    assert result(nothing) is None


def test_a_failure_is_raised_with_what_was_recorded(result: Result, conn: Conn, one: Holder) -> None:
    job_id = add(conn)
    error = ErrorInfo(kind=ErrorKind.ERROR, type="ValueError", message="no such size", traceback="Traceback …")
    one.end(one.lease_one(), "failed", error=error)
    with pytest.raises(JobFailedError, match=f"job {job_id} failed: ValueError: no such size") as caught:
        result(job_id)
    assert (caught.value.job_id, caught.value.error["traceback"]) == (job_id, "Traceback …")


def test_a_canceled_job_and_one_that_nobody_knows(result: Result, conn: Conn) -> None:
    job_id = add(conn)
    cancel(conn, job_id)
    with pytest.raises(JobCanceledError, match=f"job {job_id} was canceled: canceled on request"):
        result(job_id)
    with pytest.raises(UnknownJobError, match="the transaction that enqueues it has not been committed"):
        result(job_id + 1)


def test_the_time_is_over(result: Result, conn: Conn) -> None:
    job_id = add(conn)
    with pytest.raises(TimeoutError, match=f"job {job_id} is not final after 0.5 seconds; it goes on"):
        result(job_id, 0.5)
    assert conn.execute(WAITING).fetchall() == []
    with pytest.raises(TimeoutError):
        result(job_id, 0)


def test_whoever_waits_is_told(
    result: Result, conn: Conn, dsn: str, one: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LONGEST_PAUSE", 3600.0)  # a look would come too late
    job_id = add(conn)
    lease = one.lease_one()
    with waiting(lambda: result(job_id)) as answer:
        wait_for_row(conn, WAITING)
        with listening(dsn, "tasuki_done") as listener:
            one.end(lease, "completed", result="7")
            assert answer() == 7
            assert heard(listener, "tasuki_done") == [str(job_id)]
    assert conn.execute(WAITING).fetchall() == []


def test_nobody_is_told_when_nobody_waits_for_that_job(conn: Conn, dsn: str, one: Holder) -> None:
    conn.execute("INSERT INTO tasuki.waiter (job_id) VALUES (0)")
    add(conn)
    with listening(dsn, "tasuki_done") as listener:
        one.end(one.lease_one(), "completed")
        assert heard(listener, "tasuki_done") == []
    conn.execute("DELETE FROM tasuki.waiter")


def test_a_look_finds_what_no_notification_tells(result: Result, conn: Conn) -> None:
    job_id = add(conn)
    with waiting(lambda: result(job_id)) as answer:
        wait_for_row(conn, WAITING)
        cancel(conn, job_id)
        with pytest.raises(JobCanceledError):
            answer()


def test_waiting_outlives_the_connection_that_listens(result: Result, conn: Conn, one: Holder) -> None:
    job_id = add(conn)
    lease = one.lease_one()
    with waiting(lambda: result(job_id)) as answer:
        wait_for_row(conn, WAITING)
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tasuki-mp producer'"
            " AND datname = current_database()"
        )
        one.end(lease, "completed", result="7")
        assert answer() == 7


@pytest.fixture
def reader(conn: Conn, dsn: str) -> Iterator[str]:
    """A dsn of somebody who may only look at jobs."""
    role = sql.Identifier(f"reader_{conn.info.dbname}")
    conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'; GRANT USAGE ON SCHEMA tasuki TO {}").format(role, role))
    conn.execute(sql.SQL("GRANT SELECT ON tasuki.job, tasuki.job_archive TO {}").format(role))
    yield psycopg.conninfo.make_conninfo(dsn, options=f"-c role={role.as_string().strip(chr(34))}")
    conn.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))


@pytest.mark.usefixtures("own_database")
def test_a_role_that_may_only_read_looks(conn: Conn, reader: str, one: Holder) -> None:
    job_id = add(conn)
    lease = one.lease_one()
    with Client(reader) as client, waiting(lambda: results.wait(client, job_id, 45, Any)) as answer:
        one.end(lease, "completed", result="7")
        assert answer() == 7


@pytest.mark.usefixtures("own_database")
def test_through_a_pool_of_one_connection_without_autocommit_too(conn: Conn, reader: str, one: Holder) -> None:
    """Being refused to register leaves its transaction failed; and there is no other connection to look with."""
    job_id = add(conn)
    lease = one.lease_one()
    with psycopg_pool.ConnectionPool(reader, min_size=1, max_size=1, open=True) as pool:
        with pytest.raises(TimeoutError):
            results.wait(Client(pool), job_id, 0.5, Any)
        with pool.connection() as connection:
            assert connection.execute("SELECT pg_listening_channels()").fetchall() == []
        with waiting(lambda: results.wait(Client(pool), job_id, 45, Any)) as answer:
            one.end(lease, "completed", result="7")
            assert answer() == 7

    async def twin() -> Any:
        async with psycopg_pool.AsyncConnectionPool(reader, min_size=1, max_size=1, open=False) as pool:
            with pytest.raises(TimeoutError):
                await results.wait_async(AsyncClient(pool), later, 0.5, Any)
            async with pool.connection() as connection:
                found = await (await connection.execute("SELECT pg_listening_channels()")).fetchall()
                assert found == []
            return await results.wait_async(AsyncClient(pool), job_id, 45, Any)

    later = add(conn)
    assert asyncio.run(twin()) == 7


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_whoever_waits_through_a_pool_of_one_connection_is_told(
    conn: Conn, dsn: str, one: Holder, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(results, "LONGEST_PAUSE", 3600.0)

    def sync() -> Any:
        with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool:
            return results.wait(Client(pool), job_id, 45, Any)

    async def twin() -> Any:
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
            return await results.wait_async(AsyncClient(pool), job_id, 45, Any)

    job_id = add(conn)
    lease = one.lease_one()
    with waiting(lambda: asyncio.run(twin()) if is_async else sync()) as answer:
        wait_for_row(conn, WAITING)
        one.end(lease, "completed", result="7")
        assert answer() == 7
    assert conn.execute(f"{WAITING} WHERE job_id = %s", (job_id,)).fetchall() == []


def test_more_may_wait_than_there_are_connections(conn: Conn, dsn: str, one: Holder) -> None:
    ids = [add(conn) for _ in range(12)]
    leases = one.lease(12)

    async def run() -> list[Any]:
        async with AsyncClient(dsn) as client:
            return await asyncio.gather(*(results.wait_async(client, job_id, 45, Any) for job_id in ids))

    with waiting(lambda: asyncio.run(run())) as answer:
        wait_for_row(conn, WAITING)
        for lease in leases:
            one.end(lease, "completed", result="1")
        assert answer() == [1] * 12


def test_a_handle_has_it(conn: Conn, client: Client, one: Holder) -> None:
    handle = client.enqueue(anything.job(1))
    one.end(one.lease(handlers=["anything"])[0], "completed", result="7")
    assert handle.result(45) == 7
    assert handle.result(kind=float) == 7.0


class waiting:  # noqa: N801  used like a function
    """Do something in a thread; the answer is what it returned."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._answers: list[Any] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=[function])

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._answers.append(function())
        except BaseException as error:  # noqa: BLE001  told to the test
            self._errors.append(error)

    def __enter__(self) -> Callable[[], Any]:
        self._thread.start()
        return self._answer

    def _answer(self) -> Any:
        self._thread.join(60)
        if self._errors:
            raise self._errors[0]
        return self._answers[0]

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
