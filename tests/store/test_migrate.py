"""Migrations: once each, whoever starts; and refusals that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tasuki_mp import migrate, sql, store
from tasuki_mp.errors import DatabaseError, SchemaError
from tasuki_mp.sql import Migration
from tests.support.waiting import wait_for_lock_wait, wait_until

Conn = psycopg.Connection[tuple[Any, ...]]
KNOWN = sql.migrations()
NEXT = len(KNOWN) + 1
Extend = Callable[[str], Migration]


@pytest.fixture
def extend(monkeypatch: pytest.MonkeyPatch) -> Extend:
    """Release a version of the program with one more migration."""

    def add(text: str) -> Migration:
        known = sql.migrations()
        more = Migration(number=len(known) + 1, name="more", text=text.encode())
        monkeypatch.setattr(sql, "migrations", lambda: [*known, more])
        return more

    return add


def applied(dsn: str) -> list[tuple[int, str]]:
    with psycopg.connect(dsn) as conn:
        return [(number, name) for number, name in conn.execute("SELECT number, name FROM tasuki.migration ORDER BY 1")]


def test_an_empty_database_gets_everything_once(empty_dsn: str) -> None:
    assert migrate.migrate(empty_dsn) == KNOWN
    assert migrate.migrate(empty_dsn) == []
    assert applied(empty_dsn) == [(migration.number, migration.name) for migration in KNOWN]
    with psycopg.connect(empty_dsn) as conn:
        migrate.check(conn)
        assert migrate.pending(conn) == []


def test_a_schema_that_is_there_already_is_used(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA tasuki")
        assert migrate.migrate(conn) == KNOWN


def test_ten_at_once_apply_each_migration_once(empty_dsn: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: migrate.migrate(empty_dsn), range(10)))
    assert sorted(map(len, done)) == [0] * 9 + [len(KNOWN)]
    assert len(applied(empty_dsn)) == len(KNOWN)


def test_an_older_schema_is_brought_up_or_refused_naming_the_command(dsn: str, extend: Extend) -> None:
    more = extend("CREATE TABLE tasuki.more (id integer)")
    with psycopg.connect(dsn) as conn:
        assert migrate.pending(conn) == [more]
        with pytest.raises(SchemaError, match=rf"lacks {more.file_name}: run `tasuki-mp migrate`"):
            migrate.check(conn)
    assert migrate.migrate(dsn) == [more]
    with psycopg.connect(dsn) as conn:
        migrate.check(conn)


def test_an_empty_database_lacks_all_of_them(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as conn:
        assert migrate.pending(conn) == KNOWN
        with pytest.raises(SchemaError, match="tasuki-mp migrate"):
            migrate.check(conn)


def test_a_schema_newer_than_the_program_is_refused(conn: Conn, dsn: str) -> None:
    conn.execute("INSERT INTO tasuki.migration (number, name, checksum) VALUES (%s, 'to_come', 'x')", (NEXT,))
    for call in (lambda: migrate.migrate(dsn), lambda: migrate.check(conn), lambda: migrate.pending(conn)):
        with pytest.raises(SchemaError, match=f"version {NEXT}, and this tasuki-mp knows {len(KNOWN)}"):
            call()


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(conn: Conn, dsn: str) -> None:
    conn.execute("UPDATE tasuki.migration SET checksum = 'another' WHERE number = 1")
    for call in (lambda: migrate.migrate(dsn), lambda: migrate.check(conn)):
        with pytest.raises(SchemaError, match=KNOWN[0].file_name):
            call()


def test_a_step_that_fails_leaves_nothing_of_itself(dsn: str, conn: Conn, extend: Extend) -> None:
    extend("CREATE TABLE tasuki.more (id integer); SELECT 1 / 0")
    with pytest.raises(DatabaseError, match="division by zero"):
        migrate.migrate(dsn)
    assert conn.execute("SELECT to_regclass('tasuki.more')").fetchone() == (None,)
    assert len(applied(dsn)) == len(KNOWN)
    assert conn.execute(
        """SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
            WHERE locktype = 'advisory' AND datname = current_database()"""
    ).fetchone() == (0,)


def test_a_step_without_a_transaction_is_recorded_too(dsn: str, extend: Extend) -> None:
    more = extend("-- no transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS more ON tasuki.job (created_at)")
    assert migrate.migrate(dsn) == [more]
    assert applied(dsn)[-1] == (more.number, "more")


def test_a_step_that_gets_no_lock_lets_others_pass_and_tries_again(
    dsn: str, conn: Conn, extend: Extend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "20ms")
    more = extend("ALTER TABLE tasuki.job ADD COLUMN more text")
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM tasuki.job")
        done = pool.submit(migrate.migrate, dsn)
        wait_for_lock_wait(conn)
        assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)
        wait_until(lambda: _failures(conn) >= 2, "two tries that failed")
        reader.rollback()
        assert done.result() == [more]


def test_it_gives_up_on_a_lock_in_the_end(dsn: str, extend: Extend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TIMEOUT", "1ms")
    extend("ALTER TABLE tasuki.job ADD COLUMN more text")
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM tasuki.job")
        with pytest.raises(DatabaseError, match="no lock"):
            migrate.migrate(dsn, patience=0)


def test_it_waits_for_another_program_that_migrates(dsn: str, conn: Conn, extend: Extend) -> None:
    more = extend("CREATE TABLE tasuki.more (id integer)")
    conn.execute(sql.query("try_migration_lock"))
    with pytest.raises(DatabaseError, match="another program"):
        migrate.migrate(dsn, patience=0)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(migrate.migrate, dsn)
        conn.execute(sql.query("release_migration_lock"))
        assert done.result() == [more]


def test_a_connection_in_a_transaction_is_refused(dsn: str) -> None:
    with psycopg.connect(dsn) as conn, pytest.raises(ValueError, match="autocommit"):
        migrate.migrate(conn)


def test_what_it_is_given_is_what_it_uses(dsn: str) -> None:
    with store.connect(dsn, name="given") as conn:
        assert migrate.migrate(conn) == []


def test_checksums_do_not_depend_on_how_lines_end() -> None:
    unix = Migration(number=1, name="x", text=b"select 1\n;\n")
    other = Migration(number=1, name="x", text=b"select 1\r\n;\r\n")
    assert unix.checksum == other.checksum
    assert unix.checksum != Migration(number=1, name="x", text=b"select 2\n;\n").checksum


def _failures(conn: Conn) -> int:
    row = conn.execute("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").fetchone()
    return int(row[0]) if row else 0
