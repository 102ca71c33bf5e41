"""What must be true after a chaos run: reads `invariants.sql` and looks for rows that break a promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg

_STATEMENT: Final = re.compile(rb"^-- ([a-z_ ]+): (.+)\n((?:.|\n)+?);$", re.MULTILINE)


class Verdict(NamedTuple):
    """The rows that break one promise; none if it held."""

    name: str
    promise: str
    rows: list[tuple[Any, ...]]


def check(conn: psycopg.Connection[Any], *, lease: float) -> list[Verdict]:
    """Look for violations of every invariant."""
    conn.execute("VACUUM tasuki.job")
    text = (Path(__file__).parent / "invariants.sql").read_bytes()
    return [
        Verdict(name.decode(), promise.decode(), conn.execute(query, {"lease": lease}).fetchall())
        for name, promise, query in _STATEMENT.findall(text)
    ]
