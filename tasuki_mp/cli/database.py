"""What commands share about the database: which one it is, that it can be used, and how its errors read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import psycopg
from psycopg import errors as pg

from tasuki_mp import migrate
from tasuki_mp.config import EMBEDDED, describe_dsn, find_dsn
from tasuki_mp.errors import DatabaseError, SchemaError
from tasuki_mp.store.connect import connect
from tasuki_mp.store.look import Connection
from tasuki_mp.store.words import all_in_words

F = TypeVar("F", bound=Callable[..., Any])


class Database(msgspec.Struct, frozen=True):
    """The database to work on, and its name for people, without a password."""

    dsn: str
    description: str


def database_options(command: F) -> F:
    """The options that say which database, for every command that needs one."""
    for option in (
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="A TOML file with options, and the dsn.",
        ),
        click.option("--dsn", metavar="DSN", help="The database; better set TASUKI_DSN, which other users can't see."),
    ):
        command = option(command)
    return command


@contextmanager
def open_database(dsn: str | None, config_file: Path | None) -> Iterator[Database]:
    """The database that the options and the environment name; an embedded one is kept running meanwhile."""
    found = find_dsn(dsn, config_file)
    if found != EMBEDDED:
        yield Database(found, describe_dsn(found))
        return
    from tasuki_mp import embedded

    with embedded.open_embedded() as server:
        yield Database(server.dsn, str(server))


@contextmanager
def connected(database: Database, *, name: str) -> Iterator[Connection]:
    """A connection to that database, whose errors come out as DatabaseError."""
    try:
        # A migration may take its time; people end what takes too long for them by Ctrl-C.
        with connect(database.dsn, name=name, statement_timeout=0) as conn:
            yield conn
    except psycopg.Error as error:
        raise explain(error, database) from error


@contextmanager
def open_connection(dsn: str | None, config_file: Path | None, *, name: str) -> Iterator[tuple[Database, Connection]]:
    """The database that the options name and a connection to it, once it is sure that its schema is this program's."""
    with open_database(dsn, config_file) as database, connected(database, name=name) as conn:
        migrate.check(conn)
        yield database, conn


def say_which(database: Database) -> None:
    """Tell a person at a terminal which database it is; scripts and cron get no line that nobody asked for."""
    if sys.stderr.isatty():
        click.echo(f"database {database.description}", err=True)


def explain(error: psycopg.Error, database: Database | None = None) -> DatabaseError:
    """The error as one line for people, without a password."""
    reason = all_in_words(error)
    where = ""
    if database is not None:
        where = f" {database.description}"
        password = _password(database.dsn)
        if password:
            reason = reason.replace(password, "…")
    match error:
        case pg.UndefinedTable() | pg.UndefinedFunction() | pg.InvalidSchemaName() | pg.UndefinedColumn():
            return SchemaError(f"the database{where} lacks what this program needs: run `tasuki-mp migrate` ({reason})")
        case psycopg.OperationalError() if error.sqlstate is None:
            # libpq's own words repeat that the connection failed, for each address that it tried.
            reason = re.sub(r"^connection failed: ", "", reason)
            return DatabaseError(f"can't reach the database{where}: {reason}")
        case _:
            code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
            return DatabaseError(f"the database{where} refused: {reason}{code}")


def _password(dsn: str) -> str:
    from psycopg.conninfo import conninfo_to_dict

    return str(conninfo_to_dict(dsn).get("password") or "")
