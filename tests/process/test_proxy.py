"""The fault proxy itself: it must be invisible until it is told to fail, and then fail exactly there."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.proxy import STARTUP, Fault, FaultProxy
from tests.support.waiting import wait_for_lock_wait, wait_for_row, wait_until

Conn = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def proxy(empty_dsn: str) -> Iterator[FaultProxy]:
    with FaultProxy(empty_dsn) as relay:
        yield relay


@pytest.fixture
def direct(empty_dsn: str) -> Iterator[Conn]:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE effect (number int)")
        yield conn


def effects(direct: Conn) -> int:
    row = direct.execute("SELECT count(*)::int FROM effect").fetchone()
    assert row
    return int(str(row[0]))


def connect(proxy: FaultProxy, application: str = "test", sslmode: str = "prefer") -> Conn:
    return psycopg.connect(make_conninfo(proxy.dsn, application_name=application, sslmode=sslmode), autocommit=True)


def test_it_is_invisible(proxy: FaultProxy, direct: Conn) -> None:
    with connect(proxy) as conn:
        assert conn.execute("SELECT repeat('x', 1000000)").fetchone() == ("x" * 1_000_000,)
        with conn.cursor().copy("COPY effect FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row([number])
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")
        assert conn.execute("SELECT count(*) FROM effect").fetchone() == (1000,)
        assert proxy.connections("test") == 1
    wait_until(lambda: proxy.connections() == 0)


def test_it_knows_every_message(proxy: FaultProxy, direct: Conn) -> None:
    with connect(proxy) as conn:
        conn.execute("INSERT INTO effect VALUES (%s)", [1])
    wait_until(lambda: proxy.connections() == 0)

    sent = "".join(message.tag for message in proxy.messages if message.direction == "to server")
    assert sent == STARTUP + sent.removeprefix(STARTUP)
    assert sent.endswith("PBDESX")
    answered = "".join(message.tag for message in proxy.messages if message.direction == "to client")
    assert answered.endswith("Z12nCZ")
    assert [message.number for message in proxy.messages] == list(range(1, len(proxy.messages) + 1))
    assert {message.application for message in proxy.messages} == {"test"}
    (insert,) = (message for message in proxy.messages if message.tag == "P")
    assert b"INSERT INTO effect" in insert.body


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_encryption_is_refused_as_by_a_server_without_it(proxy: FaultProxy, sslmode: str) -> None:
    with connect(proxy, sslmode=sslmode) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_query_can_be_cancelled_through_it(proxy: FaultProxy, direct: Conn) -> None:
    with connect(proxy) as conn, ThreadPoolExecutor() as thread, direct.transaction():
        direct.execute("LOCK TABLE effect")
        waiting = thread.submit(conn.execute, "SELECT * FROM effect")
        wait_for_lock_wait(direct)

        # By hand: libpq's own way keeps the interpreter waiting, and with it the proxy.
        (key,) = (message.body for message in proxy.messages if message.tag == "K")
        with socket.create_connection((conn.info.host, conn.info.port)) as request:
            request.sendall(struct.pack("!ii", 8 + len(key), 80877102) + key)

        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.result()


@pytest.mark.parametrize("is_forwarded", [False, True])
def test_cut_at_the_statement(proxy: FaultProxy, direct: Conn, is_forwarded: bool) -> None:
    conn = connect(proxy)
    # The last message of a statement is the Sync, without which the server does nothing.
    cut = proxy.arm(Fault(direction="to server", tag="S", is_forwarded=is_forwarded))

    with pytest.raises(psycopg.OperationalError) as caught:
        conn.execute("INSERT INTO effect VALUES (%s)", [1])

    assert caught.value.sqlstate is None
    assert cut.wait().application == "test"
    if is_forwarded:
        wait_until(lambda: effects(direct) == 1)
    wait_for_row(direct, "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'test')")
    assert effects(direct) == is_forwarded
    conn.close()


def test_cut_at_the_reply_loses_it_but_not_its_effect(proxy: FaultProxy, direct: Conn) -> None:
    conn = connect(proxy)
    proxy.arm(Fault(direction="to client", tag="C", where=lambda message: message.body.startswith(b"INSERT")))

    with pytest.raises(psycopg.OperationalError):
        conn.execute("INSERT INTO effect VALUES (1)")

    assert effects(direct) == 1
    conn.close()


def test_cut_at_every_message_of_a_run(proxy: FaultProxy, direct: Conn) -> None:
    def run() -> bool:
        try:
            with connect(proxy) as conn:
                conn.execute("INSERT INTO effect VALUES (%s)", [1])
        except psycopg.OperationalError:
            return False
        return True

    assert run()
    length = len(proxy.messages)
    assert length > 20
    outcomes = set()
    for at in range(1, length + 1):
        for is_forwarded in (False, True):
            before = effects(direct)
            armed = proxy.arm(Fault(at=at, is_forwarded=is_forwarded))
            has_returned = run()
            armed.wait()
            proxy.heal()
            wait_until(lambda: proxy.connections() == 0)
            gone = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'test')"
            wait_for_row(direct, gone)
            outcomes.add((has_returned, effects(direct) - before))
    # It was told and is so; it was not told and is so; it is not so. Never: it was told and is not so.
    assert outcomes == {(True, 1), (False, 1), (False, 0)}


def test_only_the_named_application_is_cut(proxy: FaultProxy) -> None:
    with connect(proxy, "listener") as listener, connect(proxy, "worker") as worker:
        assert proxy.cut("worker") == 1

        with pytest.raises(psycopg.OperationalError):
            worker.execute("SELECT 1")
        assert listener.execute("SELECT 1").fetchone() == (1,)
        assert proxy.connections() == 1


def test_a_black_hole_closes_nothing_and_flows_on_when_it_is_healed(proxy: FaultProxy, direct: Conn) -> None:
    with connect(proxy) as conn, ThreadPoolExecutor() as thread:
        hole = proxy.arm(Fault(direction="to server", tag="Q", how="black hole"))
        waiting = thread.submit(conn.execute, "INSERT INTO effect VALUES (1)")
        hole.wait()

        assert effects(direct) == 0
        assert proxy.connections() == 1
        assert not waiting.done()
        proxy.heal()

        waiting.result()
        assert effects(direct) == 1


def test_new_connections_fall_into_a_black_hole_too(proxy: FaultProxy) -> None:
    proxy.black_hole("worker")

    with pytest.raises(psycopg.errors.ConnectionTimeout):
        psycopg.connect(make_conninfo(proxy.dsn, application_name="worker", connect_timeout="2"))
    with connect(proxy, "listener") as listener:
        assert listener.execute("SELECT 1").fetchone() == (1,)

    proxy.heal()
    with connect(proxy, "worker") as worker:
        assert worker.execute("SELECT 1").fetchone() == (1,)


def test_connections_are_refused_as_by_a_server_that_is_down(proxy: FaultProxy) -> None:
    with connect(proxy) as conn:
        proxy.refuse()

        with pytest.raises(psycopg.OperationalError):
            connect(proxy)
        assert conn.execute("SELECT 1").fetchone() == (1,)

        proxy.heal()
        connect(proxy).close()
