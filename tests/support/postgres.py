"""The PostgreSQL that the tests run on: one server for the session, a fresh database for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tasuki_mp import embedded
from tasuki_mp.migrate import migrate

DSN_VARIABLE = "TASUKI_TEST_DSN"
"""Names a server to run the tests on in place of the embedded one; its role must be allowed to create databases."""

_SHARED_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30


@dataclass(frozen=True)
class Postgres:
    """A server and how to get databases from it."""

    dsn: str
    """Of a database that is only connected to for making others."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _templates: dict[date, str] = field(default_factory=dict)

    def template(self) -> str:
        """The name of a database with the project's schema, to make copies of; migrated once a day.

        The schema has a partition for each day: a copy made after midnight of one migrated before is no fresh database.
        """
        today = datetime.now(UTC).date()
        if today not in self._templates:
            name = self._new_name("template")
            self._administer(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            self._templates[today] = name
            migrate(self.dsn_of(name))
        return self._templates[today]

    def drop_templates(self) -> None:
        """At the end of the session: on somebody else's server nothing may be left."""
        while self._templates:
            self.drop(self._templates.popitem()[1])

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """The dsn of a new database, empty or a copy; dropped afterwards, whoever is still connected."""
        name = self._new_name("test")
        # Four times cheaper than the default, unless the server has to wait for the disk.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
            sql.Identifier(name),
            sql.Identifier(template or "template0"),
            sql.SQL("file_copy" if self._has_no_fsync else "wal_log"),
        )
        self._administer(statement)
        try:
            yield self.dsn_of(name)
        finally:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def dsn_of(self, database: str) -> str:
        """The dsn of a database on this server."""
        return with_database(self.dsn, database)

    def connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in autocommit to a database on this server."""
        return psycopg.connect(self.dsn_of(database), autocommit=True)

    @cached_property
    def _has_no_fsync(self) -> bool:
        with psycopg.connect(self.dsn) as conn:
            return conn.execute("SHOW fsync").fetchone() == ("off",)

    def _new_name(self, kind: str) -> str:
        return f"tasuki_{kind}_{os.getpid()}_{next(self._numbers)}"

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(statement)


def with_database(dsn: str, database: str) -> str:
    """The same server and role, another database; always as a URL."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    parts.pop("dbname", None)
    user = quote(parts.pop("user", ""), safe="")
    password = parts.pop("password", "")
    login = f"{user}:{quote(password, safe='')}@" if password else f"{user}@" if user else ""
    return f"postgresql://{login}/{quote(database, safe='')}?{urlencode(parts, quote_via=quote)}"


def _memory() -> Path | None:
    """A file system in memory, if there is one with room for the servers of all workers.

    A database has some five hundred files. To make and remove them for each test takes a disk's file system five times
    as much computing, without any waiting for the disk.
    """
    if not os.access(_SHARED_MEMORY, os.W_OK):
        return None
    room = os.statvfs(_SHARED_MEMORY)
    is_runnable = not room.f_flag & os.ST_NOEXEC  # root's server may have to copy its programs there
    return _SHARED_MEMORY if is_runnable and room.f_bavail * room.f_frsize >= _ROOM else None


@contextmanager
def session_server() -> Iterator[Postgres]:
    """The server named by `DSN_VARIABLE`, else an embedded one of the test session's own that is gone afterwards."""
    if named := os.environ.get(DSN_VARIABLE):
        yield Postgres(named)
        return
    folder = temporary_folder("tests-", parent=_memory())
    try:
        with embedded.start(folder, fsync=False) as server:
            yield Postgres(server.dsn)
        assert server.wait_stopped()
    finally:
        shutil.rmtree(folder)


def temporary_folder(prefix: str, *, parent: Path | None = None) -> Path:
    """A new folder that an embedded server can live in, also one that root starts: others may pass through it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    folder.chmod(0o711)
    return folder
