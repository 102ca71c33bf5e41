"""What may be said of the database's errors: never a row, which would be a payload in a log."""

from __future__ import annotations

import psycopg


def in_words(error: BaseException) -> str:
    """The error in one line. Of what Postgres says only the message itself: the details behind it quote whole rows."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error).strip().partition("\n")[0]).split()) or type(error).__name__


def all_in_words(error: psycopg.Error) -> str:
    """The same in one line; of a connection that can't be had all that libpq says, which is a line for each address."""
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return " ".join(str(error).split()) or type(error).__name__
    return in_words(error)
