"""Connections: whatever an administrator or a pooler has set, statements mean and cost the same."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import conninfo
from psycopg import sql as compose

from tasuki_mp import store

Conn = psycopg.Connection[tuple[Any, ...]]


def alter(conn: Conn, setting: str, value: str) -> None:
    conn.execute(
        compose.SQL("ALTER DATABASE {} SET {} = {}").format(
            compose.Identifier(conn.info.dbname), compose.Identifier(setting), compose.Literal(value)
        )
    )


def shown(conn: Conn, setting: str) -> str:
    row = conn.execute("SELECT current_setting(%s)", (setting,)).fetchone()
    assert row is not None
    return str(row[0])


def test_what_statements_mean_is_pinned(conn: Conn, dsn: str) -> None:
    alter(conn, "default_transaction_isolation", "serializable")
    alter(conn, "timezone", "America/St_Johns")
    with store.connect(dsn, name="test", statement_timeout=7, lock_timeout=3) as ours:
        assert ours.autocommit
        assert shown(ours, "transaction_isolation") == "read committed"
        with ours.transaction():
            assert shown(ours, "transaction_isolation") == "read committed"
        settings = ("timezone", "enable_seqscan", "enable_bitmapscan", "jit", "statement_timeout", "lock_timeout")
        assert [shown(ours, setting) for setting in settings] == ["UTC", "off", "off", "off", "7s", "3s"]
        assert shown(ours, "idle_in_transaction_session_timeout") == "7s"
        assert shown(ours, "application_name") == "tasuki-mp test"


def test_the_async_twin_is_the_same(dsn: str) -> None:
    async def settings(connection: psycopg.AsyncConnection[Any]) -> list[tuple[str, str]]:
        query = "SELECT name, setting FROM pg_settings WHERE source = 'client' ORDER BY name"
        return await (await connection.execute(query)).fetchall()

    async def twin() -> tuple[bool, list[tuple[str, str]]]:
        async with await store.connect_async(dsn, name="test") as connection:
            return connection.autocommit, await settings(connection)

    with store.connect(dsn, name="test") as ours:
        query = "SELECT name, setting FROM pg_settings WHERE source = 'client' ORDER BY name"
        assert asyncio.run(twin()) == (True, ours.execute(query).fetchall())


def test_options_of_the_dsn_are_kept(dsn: str) -> None:
    with store.connect(conninfo.make_conninfo(dsn, options="-c work_mem=1234kB"), name="test") as ours:
        assert (shown(ours, "work_mem"), shown(ours, "enable_seqscan")) == ("1234kB", "off")


def test_a_server_that_only_reads_is_not_connected_to(conn: Conn, dsn: str) -> None:
    alter(conn, "default_transaction_read_only", "on")
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        store.connect(dsn, name="test")
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        asyncio.run(store.connect_async(dsn, name="test"))


@pytest.fixture
def pooled_dsn(dsn: str) -> Iterator[str]:
    """The same database behind something that, like PgBouncer, refuses to be told settings at the start."""
    real = conninfo.conninfo_to_dict(dsn)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_pool, args=(listener, str(real["host"]), int(real.get("port") or 5432)))
        thread.start()
        port = listener.getsockname()[1]
        yield conninfo.make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        with contextlib.suppress(OSError):  # wakes the thread; some kernels call a listener not connected
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _pool(listener: socket.socket, host: str, server_port: int) -> None:
    relays: list[threading.Thread] = []
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            break
        startup = client.recv(8192)
        if b"\0options\0" in startup:
            fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            client.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)
            client.close()
            continue
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{server_port}")
        else:
            server = socket.create_connection((host, server_port))
        server.sendall(startup)
        for source, sink in ((client, server), (server, client)):
            relays.append(threading.Thread(target=_relay, args=(source, sink)))
            relays[-1].start()
    for relay in relays:
        relay.join()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    source.close()


def test_a_pooler_that_refuses_settings_gets_none(pooled_dsn: str) -> None:
    with store.connect(pooled_dsn, name="test") as ours:
        assert ours.prepare_threshold is None
        assert ours.autocommit
        assert ours.execute("SELECT 1").fetchone() == (1,)

    async def threshold() -> int | None:
        async with await store.connect_async(pooled_dsn, name="test") as connection:
            return connection.prepare_threshold

    assert asyncio.run(threshold()) is None


def test_other_refusals_are_raised(dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        store.connect(conninfo.make_conninfo(dsn, dbname="no_such_database"), name="test")
