"""The schema of a version to come, as far as anybody may rely on it: what there is stays, and columns come to it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

COLUMN = "of_next_version"
_TABLES = """
    SELECT relname FROM pg_class
     WHERE relnamespace = 'tasuki'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
     ORDER BY relname
"""


def widen(conn: psycopg.Connection[Any]) -> int:
    """Give every table a column of a later version, as its migration would; returns how many there were."""
    names = [name for (name,) in conn.execute(_TABLES)]
    for name in names:
        add = sql.SQL("ALTER TABLE tasuki.{} ADD COLUMN {} text NOT NULL DEFAULT 'x'")
        conn.execute(add.format(sql.Identifier(name), sql.Identifier(COLUMN)))
    return len(names)
