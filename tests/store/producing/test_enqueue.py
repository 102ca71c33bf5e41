"""One job: what is inserted, in whose transaction, who is told, and what the errors say."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from tasuki_mp import AsyncClient, Client, DatabaseError, SchemaError, State
from tasuki_mp.job import Job
from tasuki_mp.store import pool, produce
from tests.store.producer_app import anything, app, thumbnail
from tests.support.jobs import live
from tests.support.listening import heard, listening
from tests.support.postgres import Postgres, with_database
from tests.support.proxy import FaultProxy
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]
PRODUCERS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'tasuki-mp producer' AND datname = current_database()"
)


def count(conn: Conn) -> int:
    row = conn.execute("SELECT count(*) FROM tasuki.job").fetchone()
    assert row is not None
    return int(row[0])


def producers(conn: Conn) -> set[int]:
    return {pid for (pid,) in conn.execute(PRODUCERS)}


@pytest.fixture
def listener(dsn: str) -> Iterator[Conn]:
    with listening(dsn, "tasuki_job") as it:
        yield it


def told(listener: Conn) -> list[str]:
    return heard(listener, "tasuki_job")


# ── what is inserted ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_is_inserted_with_what_its_handler_declares(client: Client, conn: Conn) -> None:
    handle = client.enqueue(thumbnail.job(Path("a ü.png"), width=3))
    row = live(conn, handle.id)
    assert row is not None
    shown = {
        name: row[name] for name in ("queue", "handler", "payload", "priority", "status", "attempt", "max_attempts")
    }
    assert shown == {
        "queue": "images",
        "handler": "thumbnail",
        "payload": {"path": "a ü.png", "width": 3},
        "priority": 1,
        "status": "pending",
        "attempt": 0,
        "max_attempts": 7,
    }
    assert abs(row["scheduled_at"] - row["created_at"]) < dt.timedelta(seconds=5)
    assert handle.status() is State.PENDING
    assert repr(handle) == f"JobHandle({handle.id})"


def test_due_times_and_priority_are_the_job_s(client: Client, conn: Conn) -> None:
    when = dt.datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    at = live(conn, client.enqueue(anything.job().at(when).priority(3)).id)
    after = live(conn, client.enqueue(anything.job().after(hours=1, seconds=0.5)).id)
    assert at is not None
    assert after is not None
    assert (at["scheduled_at"], at["priority"]) == (when, 3)
    wait = after["scheduled_at"] - after["created_at"] - dt.timedelta(hours=1, seconds=0.5)
    assert dt.timedelta(0) <= wait < dt.timedelta(seconds=5)


def test_jobs_of_a_long_transaction_are_due_when_they_were_enqueued(dsn: str, client: Client) -> None:
    with psycopg.connect(dsn) as own:
        own.execute("SELECT pg_sleep(0.02)")
        handle = client.enqueue(anything.job(), own)
        row = live(own, handle.id)
        assert row is not None
        assert row["scheduled_at"] - row["created_at"] >= dt.timedelta(milliseconds=20)


def test_a_plain_call_in_place_of_a_job_is_named(client: Client) -> None:
    with pytest.raises(TypeError, match=r"None is no Job; jobs are made by handler\.job"):
        client.enqueue(thumbnail(Path("a")))  # type: ignore[arg-type, func-returns-value]  # the mistake itself


def test_an_application_enqueues_with_its_own_dsn(dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASUKI_DSN", dsn)
    monkeypatch.setattr(app, "_client", None)
    handle = app.enqueue(anything.job(1))
    ids = app.enqueue_many(anything.job(x) for x in range(3))
    assert count(conn) == 4
    assert app.cancel(handle.id, *ids) == dict.fromkeys([handle.id, *ids], "canceled")
    app.client.close()


# ── in the caller's transaction ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("own_database")
def test_the_job_exists_if_and_only_if_the_caller_commits(dsn: str, client: Client, conn: Conn) -> None:
    with psycopg.connect(dsn) as own:
        handle = client.enqueue(anything.job(), own)
        assert own.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert (handle.status(own), handle.status()) == (State.PENDING, None)
        own.rollback()
        assert handle.status() is None

        handle = client.enqueue(anything.job(), conn=own)
        own.commit()
        assert handle.status() is State.PENDING
    assert count(conn) == 1
    assert producers(conn)  # those of status() alone


def test_savepoints_are_the_caller_s(dsn: str, client: Client, conn: Conn) -> None:
    with psycopg.connect(dsn) as own:
        kept = client.enqueue(anything.job(), own)
        with own.transaction(force_rollback=True):
            dropped = client.enqueue(anything.job(), own)
            client.enqueue_many([anything.job(), anything.job()], own)
        own.commit()
    assert (kept.status(), dropped.status(), count(conn)) == (State.PENDING, None, 1)


def prepare_nothing(own: Conn) -> None:
    own.prepare_threshold = None


@pytest.mark.parametrize(
    "change",
    [
        lambda own: setattr(own, "autocommit", True),
        lambda own: setattr(own, "row_factory", dict_row),
        lambda own: setattr(own, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        lambda own: setattr(own, "cursor_factory", psycopg.ClientCursor),
        lambda own: setattr(own, "cursor_factory", psycopg.RawCursor),
        lambda own: setattr(own, "prepare_threshold", None),
        lambda own: setattr(own, "prepare_threshold", 0),
        lambda own: own.execute("SET search_path = nowhere"),
    ],
    ids=["autocommit", "rows", "isolation", "client cursor", "raw cursor", "unprepared", "prepared", "search_path"],
)
def test_any_kind_of_psycopg_connection_will_do(dsn: str, client: Client, conn: Conn, change: Any) -> None:
    with psycopg.connect(dsn) as own:
        change(own)
        own.commit()
        handle = client.enqueue(anything.job(), own)
        ids = client.enqueue_many([anything.job(), anything.job()], own)
        assert client.cancel([ids[0]], own) == {ids[0]: "canceled"}
        assert client.status(ids[0], own) is State.CANCELED
        assert count(conn) == (2 if own.autocommit else 0)
        own.commit()
        assert handle.status() is State.PENDING
    assert count(conn) == 2


def test_a_pipeline_of_the_caller_s_will_do(dsn: str, client: Client, conn: Conn) -> None:
    with psycopg.connect(dsn) as own, own.pipeline():
        for x in range(3):
            client.enqueue(anything.job(x), own)
    assert count(conn) == 3


def test_statements_are_prepared_once_for_all_jobs(dsn: str, client: Client) -> None:
    with psycopg.connect(dsn) as own:
        for x in range(20):
            client.enqueue(thumbnail.job(Path(str(x))).priority(x % 4).after(x), own)
            client.enqueue(anything.job("x" * x), own)
        prepared = own.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'insert into tasuki'")
        assert prepared.fetchone() == (1,)


@pytest.mark.parametrize("wrong", ["postgresql://", 1, object()])
def test_what_is_no_connection_is_refused(client: Client, wrong: Any) -> None:
    for call in (
        lambda: client.enqueue(anything.job(), wrong),
        lambda: client.enqueue_many([anything.job()], wrong),
        lambda: client.cancel([1], wrong),
    ):
        with pytest.raises(TypeError, match=r"must be a psycopg\.Connection, not .*driver_connection"):
            call()


def test_the_wrong_kind_of_connection_is_refused(dsn: str, client: Client, conn: Conn) -> None:
    async def crossed() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            with pytest.raises(TypeError, match=r"for asyncio use tasuki_mp\.AsyncClient"):
                client.enqueue(anything.job(), own)  # type: ignore[arg-type]  # the mistake itself
        async with AsyncClient(dsn) as twin:
            with pytest.raises(TypeError, match=r"needs a psycopg\.AsyncConnection"):
                await twin.enqueue(anything.job(), conn)  # type: ignore[arg-type]  # the mistake itself

    asyncio.run(crossed())


# ── on connections of its own ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("own_database")
def test_nothing_is_opened_before_the_first_use_and_all_is_closed(dsn: str, conn: Conn) -> None:
    client = Client(dsn)
    assert not producers(conn)
    client.enqueue(anything.job())
    assert producers(conn)
    client.close()
    wait_until(lambda: not producers(conn), "the connections are closed")
    client.enqueue(anything.job())
    client.close()
    assert count(conn) == 2


@pytest.mark.usefixtures("own_database")
def test_many_threads_share_few_connections(client: Client, conn: Conn) -> None:
    threads = [threading.Thread(target=lambda: [client.enqueue(anything.job(x)) for x in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(conn) == 160
    assert 1 <= len(producers(conn)) <= 4


@pytest.mark.usefixtures("own_database")
def test_a_connection_that_the_server_ended_is_replaced(client: Client, conn: Conn) -> None:
    client.enqueue(anything.job())
    before = producers(conn)
    for pid in before:
        conn.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    client.enqueue(anything.job())
    assert count(conn) == 2
    assert not before & producers(conn)


@pytest.mark.usefixtures("own_database")
def test_a_connection_that_the_server_ended_is_replaced_in_asyncio(dsn: str, conn: Conn) -> None:
    async def enqueue() -> None:
        async with AsyncClient(dsn) as twin:
            await twin.enqueue(anything.job())
            before = producers(conn)
            for pid in before:
                conn.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
            await twin.enqueue(anything.job())
            assert not before & producers(conn)

    asyncio.run(enqueue())
    assert count(conn) == 2


def test_a_connection_that_worked_just_now_is_not_tried(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(dsn) as proxy, Client(proxy.dsn) as client:

        def tries() -> int:
            before = len(proxy.messages)
            client.enqueue(anything.job())
            return sum(1 for message in proxy.messages[before:] if message.tag == "Q" and message.body == b"\0")

        monkeypatch.setattr(pool, "_TRIED_EVERY", 60.0)
        for _ in range(5):
            tries()  # each connection of the pool has been handed out by then
        assert tries() == 0
        monkeypatch.setattr(pool, "_TRIED_EVERY", 0.0)
        assert tries() == 1
        monkeypatch.setattr(pool, "_TRIED_EVERY", 60.0)
        assert tries() == 0


@pytest.mark.usefixtures("own_database")
def test_a_connection_whose_server_became_a_standby_is_replaced(client: Client, conn: Conn) -> None:
    client.enqueue(anything.job())
    before = producers(conn)
    conn.execute(
        "CREATE FUNCTION read_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'read-only' USING errcode = '25006'; END $$;"
        "CREATE TRIGGER read_only BEFORE INSERT ON tasuki.job EXECUTE FUNCTION read_only()"
    )
    with pytest.raises(DatabaseError, match="write to the primary") as caught:
        client.enqueue(anything.job())
    assert isinstance(caught.value.__cause__, pg.ReadOnlySqlTransaction)
    conn.execute("DROP TRIGGER read_only ON tasuki.job")
    client.enqueue(anything.job())
    wait_until(lambda: not before <= producers(conn), "another connection is used")


@pytest.mark.usefixtures("own_database")
def test_a_serializable_default_changes_nothing(dsn: str, conn: Conn) -> None:
    database = conninfo_to_dict(dsn)["dbname"]
    conn.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    conn.execute(
        "CREATE TABLE level (seen text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO level VALUES (current_setting('transaction_isolation')); RETURN null; END $$;"
        "CREATE TRIGGER note AFTER INSERT ON tasuki.job EXECUTE FUNCTION note()"
    )
    with Client(dsn) as client:
        client.enqueue(anything.job())
        client.enqueue_many([anything.job()])
    assert conn.execute("SELECT DISTINCT seen FROM level").fetchall() == [("read committed",)]


def test_a_pool_of_the_caller_s_is_used_and_left_open(dsn: str, conn: Conn) -> None:
    options = {"row_factory": dict_row}
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, kwargs=options, open=True) as pool:
        with Client(pool) as client:
            client.enqueue(anything.job())
            assert len(client.enqueue_many([anything.job()])) == 1
        assert count(conn) == 2
        with pool.connection() as own:
            assert own.execute("SELECT 1 AS one").fetchone() == {"one": 1}
    with pytest.raises(DatabaseError, match="closed"):
        client.enqueue(anything.job())


def test_a_fork_gets_connections_of_its_own_and_the_end_is_silent(dsn: str, conn: Conn) -> None:
    program = """
import os, sys
from tests.store.producer_app import anything
from tasuki_mp import Client
client = Client(sys.argv[1])
client.enqueue(anything.job("parent"))
pid = os.fork()
if pid == 0:
    for _ in range(3):
        client.enqueue(anything.job("child"))
    sys.exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
client.enqueue(anything.job("parent again"))
"""
    # Forking with threads is what this test is about; 3.12 warns of it.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", program, dsn], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    xs = conn.execute("SELECT payload ->> 'x' FROM tasuki.job ORDER BY id").fetchall()
    assert xs == [("parent",), ("child",), ("child",), ("child",), ("parent again",)]


# ── who is told ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_supervisors_are_told_of_what_is_due(client: Client, listener: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "TELL_EVERY", 0.0)
    client.enqueue(thumbnail.job(Path("a")))
    client.enqueue(thumbnail.job(Path("a")).after(hours=1))
    client.enqueue(anything.job().at(dt.datetime(2000, 1, 1, tzinfo=dt.UTC)))
    assert told(listener) == ["images 0", "default 0"]


def test_what_inserts_a_job_does_not_notify_but_what_follows_it_does(
    client: Client, dsn: str, listener: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever notifies holds a lock of the whole server until its commit is on disk.
    monkeypatch.setattr(produce, "TELL_EVERY", 0.0)
    made = []
    enqueueing = produce.enqueueing

    def noted(job: Job, *, is_told: bool) -> tuple[bytes, dict[str, Any]]:
        made.append(is_told)
        return enqueueing(job, is_told=is_told)

    monkeypatch.setattr(produce, "enqueueing", noted)
    client.enqueue(anything.job())
    assert (made, told(listener)) == ([False], ["default 0"])

    async def enqueue() -> None:
        async with AsyncClient(dsn) as other:
            await other.enqueue(anything.job())

    asyncio.run(enqueue())
    assert (made, told(listener)) == ([False, False], ["default 0"])
    with psycopg.connect(dsn) as own:
        client.enqueue(anything.job(), own)
    assert (made, told(listener)) == ([False, False, True], ["default 0"])


def test_a_job_whose_notification_fails_is_there(
    client: Client, conn: Conn, listener: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "TELL", b"SELECT 1 / 0")
    monkeypatch.setattr(produce, "tell_parameters", lambda _: {})
    handle = client.enqueue(anything.job())
    assert live(conn, handle.id) is not None
    assert told(listener) == []


def test_a_busy_producer_tells_each_queue_now_and_then(
    client: Client, listener: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "TELL_EVERY", 3600.0)
    client.enqueue(thumbnail.job(Path("a")).after(hours=1))
    for _ in range(5):
        client.enqueue(thumbnail.job(Path("a")))
        client.enqueue(anything.job())
    assert told(listener) == ["images 0", "default 0"]


def test_a_transaction_tells_each_queue_once_at_its_commit(dsn: str, client: Client, listener: Conn) -> None:
    with psycopg.connect(dsn) as own:
        for _ in range(5):
            client.enqueue(thumbnail.job(Path("a")), own)
            client.enqueue(anything.job(), own)
        assert told(listener) == []
        own.commit()
        assert told(listener) == ["images 0", "default 0"]
        client.enqueue(anything.job(), own)
        own.rollback()
    assert told(listener) == []


# ── what errors say ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_database_says_migrate(empty_dsn: str) -> None:
    with Client(empty_dsn) as client:
        for call in (
            lambda: client.enqueue(anything.job()),
            lambda: client.enqueue_many([anything.job()]),
            lambda: client.cancel([1]),
            lambda: client.status(1),
        ):
            with pytest.raises(SchemaError, match="run `tasuki-mp migrate`"):
                call()


def test_a_database_out_of_reach_is_said_at_once() -> None:
    with pytest.raises(DatabaseError, match=r"can't reach the database: .*refused"):
        Client("postgresql://nobody@127.0.0.1:1/nothing").enqueue(anything.job())


def test_a_database_that_does_not_exist_is_said_at_once(dsn: str) -> None:
    with pytest.raises(DatabaseError, match='database "nowhere" does not exist'):
        Client(with_database(dsn, "nowhere")).enqueue(anything.job())


def test_a_failed_transaction_says_roll_back(dsn: str, client: Client) -> None:
    with psycopg.connect(dsn) as own:
        with pytest.raises(pg.DivisionByZero):
            own.execute("SELECT 1 / 0")
        with pytest.raises(DatabaseError, match="roll it back"):
            client.enqueue(anything.job(), own)
        with pytest.raises(DatabaseError, match="roll it back"):
            client.enqueue_many([anything.job()], own)


@pytest.mark.usefixtures("own_database")
def test_what_postgres_quotes_of_a_row_is_not_repeated(client: Client, conn: Conn) -> None:
    """ "Failing row contains (…)": the details of a refusal are the payload."""
    conn.execute('ALTER TABLE tasuki.job ADD CONSTRAINT "full" CHECK (false)')
    for enqueue in (client.enqueue, lambda job: client.enqueue_many([job])):
        with pytest.raises(DatabaseError, match='constraint "full"') as caught:
            enqueue(anything.job("s3cret"))
        assert "s3cret" not in str(caught.value)


def test_a_role_without_rights_is_told_so(dsn: str, client: Client, conn: Conn, postgres: Postgres) -> None:
    role = f"tasuki_stranger_{conninfo_to_dict(dsn)['dbname']}"
    conn.execute(f"CREATE ROLE {role}")
    try:
        with psycopg.connect(dsn) as own:
            own.execute(f"SET ROLE {role}")
            with pytest.raises(DatabaseError, match="grant it the rights"):
                client.enqueue(anything.job(), own)
    finally:
        conn.execute(f"DROP ROLE {role}")


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("own_database")
def test_the_async_twin_does_the_same(dsn: str, conn: Conn) -> None:
    async def produce_some() -> None:
        async with AsyncClient(dsn) as client:
            handle = await client.enqueue(thumbnail.job(Path("a")))
            assert await handle.status() is State.PENDING
            assert await handle.cancel() == "canceled"
            assert await handle.status() is State.CANCELED
            assert repr(handle) == f"AsyncJobHandle({handle.id})"
            assert len(await client.enqueue_many(anything.job(x) for x in range(5))) == 5
            assert len(await client.enqueue_many([])) == 0
            async with await psycopg.AsyncConnection.connect(dsn) as own:
                kept = await client.enqueue(anything.job(), own)
                async with own.transaction(force_rollback=True):
                    dropped = await client.enqueue_many([anything.job()], conn=own)
                assert await kept.status() is None
                assert await kept.status(own) is State.PENDING
                await own.commit()
                assert await kept.status() is State.PENDING
                assert await client.status(dropped[0]) is None
            await asyncio.gather(*(client.enqueue(anything.job(x)) for x in range(20)))

    asyncio.run(produce_some())
    assert count(conn) == 5 + 1 + 20
    wait_until(lambda: not producers(conn), "the connections are closed")


def test_an_async_client_can_serve_one_loop_after_the_other(dsn: str, conn: Conn) -> None:
    client = AsyncClient(dsn)

    async def once() -> None:
        await client.enqueue(anything.job())
        await client.close()

    asyncio.run(once())
    asyncio.run(once())
    assert count(conn) == 2


@pytest.mark.usefixtures("own_database")
def test_cancelled_tasks_give_their_connections_back(dsn: str, conn: Conn) -> None:
    async def produce_some() -> None:
        async with AsyncClient(dsn) as client:
            await client.enqueue(anything.job())
            for _ in range(12):
                conn.execute("BEGIN; LOCK TABLE tasuki.job IN ACCESS EXCLUSIVE MODE")
                waiting = asyncio.create_task(client.enqueue(anything.job()))
                while not waits_for_a_lock(conn):
                    await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                conn.execute("ROLLBACK")
            await client.enqueue(anything.job())

    asyncio.run(produce_some())
    assert count(conn) == 2


def waits_for_a_lock(conn: Conn) -> bool:
    row = conn.execute(
        """SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"""
    ).fetchone()
    return row == (True,)


def test_a_pool_for_asyncio_of_the_caller_s(dsn: str, conn: Conn) -> None:
    async def produce_some() -> None:
        async with psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
            async with AsyncClient(pool) as client:
                await client.enqueue(anything.job())
            async with pool.connection() as own:
                assert await (await own.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(produce_some())
    assert count(conn) == 1


def test_the_async_errors_say_the_same(empty_dsn: str) -> None:
    async def fail() -> None:
        async with AsyncClient(empty_dsn) as client:
            with pytest.raises(SchemaError, match="run `tasuki-mp migrate`"):
                await client.enqueue(anything.job())
            with pytest.raises(SchemaError, match="run `tasuki-mp migrate`"):
                await client.enqueue_many([anything.job()])
        for _ in range(2):
            with pytest.raises(DatabaseError, match=r"can't reach the database: .*refused"):
                await AsyncClient("postgresql://nobody@127.0.0.1:1/nothing").enqueue(anything.job())
        with pytest.raises(TypeError, match="no Job"):
            await client.enqueue(None)  # type: ignore[arg-type]  # the mistake itself

    asyncio.run(fail())
