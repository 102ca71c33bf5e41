"""Where a client's own connections come from, and what it says when there are none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tasuki_mp import AsyncClient, Client, DatabaseError, embedded
from tasuki_mp.store import pool as pools
from tests.store.producer_app import anything
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pools._SIZES, "timeout", 0.5)


def jobs(conn: Conn) -> list[Any]:
    return [x for (x,) in conn.execute("SELECT payload ->> 'x' FROM tasuki.job ORDER BY id")]


def waiting(conn: Conn) -> int:
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_when_all_connections_are_in_use_that_is_what_it_says(client: Client, dsn: str, conn: Conn) -> None:
    client.enqueue(anything.job("first"))
    with psycopg.connect(dsn) as holder:
        holder.execute("LOCK TABLE tasuki.job IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=client.enqueue, args=(anything.job("waits"),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: waiting(conn) == 4, "all connections wait")
        assert client._pools._own is not None
        client._pools._own.timeout = 0.2
        with pytest.raises(DatabaseError, match="all 4 connections of this process were in use"):
            client.enqueue(anything.job("too many"))
    for thread in threads:
        thread.join()
    assert jobs(conn) == ["first", *["waits"] * 4]


def test_all_in_use_for_asyncio(dsn: str, conn: Conn) -> None:
    async def run() -> None:
        async with AsyncClient(dsn) as client:
            await client.enqueue(anything.job("first"))
            async with await psycopg.AsyncConnection.connect(dsn) as holder:
                await holder.execute("LOCK TABLE tasuki.job IN ACCESS EXCLUSIVE MODE")
                tasks = [asyncio.create_task(client.enqueue(anything.job("waits"))) for _ in range(4)]
                while waiting(conn) < 4:
                    await asyncio.sleep(0)
                assert client._pools._own is not None
                (await client._pools._own[1]).timeout = 0.2
                with pytest.raises(DatabaseError, match="all 4 connections of this process were in use"):
                    await client.enqueue(anything.job("too many"))
            await asyncio.gather(*tasks)

    asyncio.run(run())
    assert jobs(conn) == ["first", *["waits"] * 4]


@pytest.mark.usefixtures("impatient")
def test_a_database_that_has_gone_is_said_when_patience_ends(postgres: Postgres, template: str) -> None:
    async def fail(address: str, client: AsyncClient) -> None:
        await client.enqueue(anything.job())
        postgres.drop(str(conninfo_to_dict(address)["dbname"]))
        with pytest.raises(DatabaseError, match="does not exist"):
            await client.enqueue(anything.job())
        await client.close()

    source = sql.Identifier(template)
    for name in ("tasuki_gone_1", "tasuki_gone_2"):
        postgres._administer(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source))
    with Client(postgres.dsn_of("tasuki_gone_1")) as client:
        client.enqueue(anything.job())
        postgres.drop("tasuki_gone_1")
        with pytest.raises(DatabaseError, match="does not exist"):
            client.enqueue(anything.job())
    address = postgres.dsn_of("tasuki_gone_2")
    asyncio.run(fail(address, AsyncClient(address)))


def test_a_pool_of_the_caller_s_that_is_exhausted_says_so(dsn: str) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool, pool.connection():
        pool.timeout = 0.2
        with pytest.raises(DatabaseError, match="couldn't get a connection"):
            Client(pool).enqueue(anything.job())

    async def run() -> None:
        pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)
        async with pool, pool.connection():
            pool.timeout = 0.2
            with pytest.raises(DatabaseError, match="couldn't get a connection"):
                await AsyncClient(pool).enqueue(anything.job())

    asyncio.run(run())


def test_a_pooler_that_takes_no_options_gets_none(dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for PgBouncer, which refuses unknown settings at the start of a session, in just these words.
    refused = psycopg.OperationalError("connection failed: FATAL:  unsupported startup parameter: options")
    connect, connect_async = psycopg.Connection.connect, psycopg.AsyncConnection.connect
    unprepared: list[Any] = []

    def pooler(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if "options" in kwargs:
            raise refused
        unprepared.append(kwargs["prepare_threshold"])
        return connect.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]  # a class method's function

    async def async_pooler(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if "options" in kwargs:
            raise refused
        unprepared.append(kwargs["prepare_threshold"])
        return await connect_async.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]  # as above

    async def run() -> None:
        async with AsyncClient(dsn) as client:
            await client.enqueue(anything.job(2))

    monkeypatch.setattr(psycopg.Connection, "connect", classmethod(pooler))
    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(async_pooler))
    with Client(dsn) as client:
        client.enqueue(anything.job(1))
    asyncio.run(run())
    assert jobs(conn) == ["1", "2"]
    assert set(unprepared) == {None}


def test_options_of_the_dsn_are_kept(dsn: str, conn: Conn) -> None:
    conn.execute("ALTER TABLE tasuki.job ADD COLUMN IF NOT EXISTS note text DEFAULT current_setting('shop.note', true)")
    try:
        with Client(f"{dsn}&options=-c%20shop.note%3Dkept") as client:
            client.enqueue(anything.job())
        assert conn.execute("SELECT note FROM tasuki.job").fetchall() == [("kept",)]
    finally:
        conn.execute("ALTER TABLE tasuki.job DROP COLUMN note")


def test_the_embedded_server_is_started_and_let_go(dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Server:
        def __init__(self) -> None:
            self.dsn = dsn

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(embedded, "start", Server)
    with Client("embedded") as client:
        client.enqueue(anything.job(1))
        assert not closed
    assert closed == [True]
    assert jobs(conn) == ["1"]


def test_a_client_for_asyncio_survives_a_fork_too(dsn: str, conn: Conn) -> None:
    program = """
import asyncio, os, sys
from tests.store.producer_app import anything
from tasuki_mp import AsyncClient
client = AsyncClient(sys.argv[1])
async def parent():
    await client.enqueue(anything.job("parent"))
    pid = os.fork()  # as subprocesses with preexec_fn do, while the loop runs
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", ""])
    os.waitpid(pid, 0)
    await client.enqueue(anything.job("parent again"))
    await client.close()
async def child():
    await client.enqueue(anything.job("child"))
    await client.close()
asyncio.run(parent())
pid = os.fork()
if pid == 0:
    asyncio.run(child())
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
asyncio.run(child())
"""
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", program, dsn], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert jobs(conn) == ["parent", "parent again", "child", "child"]
