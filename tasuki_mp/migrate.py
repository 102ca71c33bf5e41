"""Brings a database's schema up to this program's, once, however many start at the same time.

Every migration is recorded with its number and checksum, in the transaction that applies it. Nothing is ever migrated
back. Runs in the program that was asked to migrate, before anything else there uses the database.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg import errors as pg

from tasuki_mp import sql
from tasuki_mp.errors import DatabaseError, SchemaError
from tasuki_mp.sql import Migration
from tasuki_mp.store.connect import connect
from tasuki_mp.store.words import all_in_words, in_words

Connection = psycopg.Connection[tuple[Any, ...]]

COMMAND: Final = "tasuki-mp migrate"
PATIENCE: Final = 300.0
"""Seconds to wait for another program that migrates, or for a lock that a step needs."""
_POLL: Final = 0.1
_LOCK_TIMEOUT = "2s"
"""How long one try may make others queue behind it."""

_MIGRATION_TABLE: Final = sql.query("migration_table")
_APPLIED: Final = sql.query("applied_migrations")
_RECORD: Final = sql.query("record_migration")
_TRY_LOCK: Final = sql.query("try_migration_lock")
_SET_LOCK_TIMEOUT: Final = sql.query("set_lock_timeout")
_UNLOCK: Final = sql.query("release_migration_lock")


def migrate(database: str | Connection, *, patience: float = PATIENCE) -> list[Migration]:
    """Apply what is missing and return it; safe at any time and from any number of programs at once.

    `database` is a dsn, or a connection in autocommit mode. It must reach Postgres directly, not through a pooler in
    transaction mode. Raises SchemaError if the schema is newer than this program, or was changed after it was applied.
    """
    try:
        if isinstance(database, str):
            with connect(database, name="migrate", statement_timeout=0) as conn:
                return _migrate(conn, patience)
        if not database.autocommit:
            raise ValueError("migrate() needs a connection in autocommit mode")
        return _migrate(database, patience)
    except psycopg.Error as error:
        raise DatabaseError(f"the schema could not be migrated: {all_in_words(error)}") from error


def pending(conn: Connection) -> list[Migration]:
    """The migrations that this database still lacks. Raises SchemaError as `migrate` does."""
    known = sql.migrations()
    applied = _applied(conn)
    newest = max(applied, default=0)
    if newest > len(known):
        raise SchemaError(
            f"the database's schema is at version {newest}, and this tasuki-mp knows {len(known)}: upgrade it"
        )
    for migration in known:
        if applied.get(migration.number, migration.checksum) != migration.checksum:
            raise SchemaError(
                f"migration {migration.file_name} was applied to this database with another text than this tasuki-mp"
                f" has: use the version that made the schema, or one released after it"
            )
    return [migration for migration in known if migration.number not in applied]


def check(conn: Connection) -> None:
    """Raise SchemaError, saying what to do, unless the database's schema is the one that this program knows."""
    missing = pending(conn)
    if missing:
        names = ", ".join(migration.file_name for migration in missing)
        raise SchemaError(f"the database's schema lacks {names}: run `{COMMAND}`")


def _migrate(conn: Connection, patience: float) -> list[Migration]:
    if not pending(conn):
        return []
    with _only_one(conn, patience):
        missing = pending(conn)  # somebody else may have been faster
        for migration in missing:
            _apply_patiently(conn, migration, patience)
    return missing


@contextmanager
def _only_one(conn: Connection, patience: float) -> Iterator[None]:
    # Polled, because a session that waits for the lock has a snapshot, and CREATE INDEX CONCURRENTLY waits for those.
    deadline = monotonic() + patience
    while not _value(conn, _TRY_LOCK):
        if monotonic() > deadline:
            raise DatabaseError(f"another program has been migrating this database for {patience:.0f} seconds")
        _pause()
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute(_UNLOCK)


def _apply_patiently(conn: Connection, migration: Migration, patience: float) -> None:
    # Everybody else who wants the table queues behind a step that waits for it. So each try is short, and there are many.
    deadline = monotonic() + patience
    while True:
        try:
            _apply(conn, migration)
        except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
            if monotonic() > deadline:
                raise DatabaseError(
                    f"migration {migration.file_name} got no lock in {patience:.0f} seconds: {in_words(error)}"
                ) from error
            _pause()
        else:
            return


def _apply(conn: Connection, migration: Migration) -> None:
    record = {"number": migration.number, "name": migration.name, "checksum": migration.checksum}
    if migration.has_transaction:
        with conn.transaction():
            conn.execute(_SET_LOCK_TIMEOUT, {"timeout": _LOCK_TIMEOUT})
            conn.execute(migration.text)
            conn.execute(_RECORD, record)
    else:
        conn.execute(migration.text)
        conn.execute(_RECORD, record)


def _applied(conn: Connection) -> dict[int, str]:
    if not _value(conn, _MIGRATION_TABLE):
        return {}
    return {number: checksum for number, _, checksum in conn.execute(_APPLIED).fetchall()}


def _value(conn: Connection, query: bytes) -> Any:
    row = conn.execute(query).fetchone()
    return None if row is None else row[0]


def _pause() -> None:
    threading.Event().wait(_POLL)
