"""Which statements the server executes and how long each takes, from its own log: exact, and in every installation.

`pg_stat_statements` has no percentiles, and is not everywhere. What is counted is the server's time for planning and
executing; the way there and back is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

_LINE: Final = re.compile(
    r"^\S+ \S+ \S+ \[(?P<pid>\d+)\] (?P<application>.*?) LOG:  duration: (?P<ms>[\d.]+) ms  "
    r"(?P<phase>parse|bind|execute|statement)(?: [^:]*)?: (?P<text>.*)$"
)
_SETTINGS: Final = {"log_min_duration_statement": "0", "log_parameter_max_length": "0"}


@dataclass(frozen=True)
class Statement:
    application: str
    text: str
    """Its first line: the header comment says what it does."""
    ms: float


class Log:
    """The server's log from some place on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size

    def mark(self) -> int:
        """The place that has been reached by now."""
        return self._path.stat().st_size

    def statements(self, begin: int | None = None, end: int | None = None) -> list[Statement]:
        """What was executed, also between two marks."""
        with self._path.open("rb") as file:
            file.seek(self._at if begin is None else begin)
            data = file.read(-1 if end is None else end - file.tell())
        return list(_parsed(data.decode(errors="replace").splitlines()))


def _parsed(lines: list[str]) -> Iterator[Statement]:
    before: dict[str, float] = {}
    for line in lines:
        if (found := _LINE.match(line)) is None:
            continue
        pid, ms = found["pid"], float(found["ms"])
        if found["phase"] in ("parse", "bind"):
            before[pid] = before.get(pid, 0.0) + ms
        else:
            yield Statement(found["application"], found["text"].strip(), before.pop(pid, 0.0) + ms)


@contextmanager
def logged(conn: psycopg.Connection[Any], path: Path) -> Iterator[Log]:
    """Have the server log every statement of connections that are opened meanwhile."""
    database = sql.Identifier(conn.info.dbname)
    for name, value in _SETTINGS.items():
        conn.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, sql.Identifier(name), value))
    try:
        yield Log(path)
    finally:
        for name in _SETTINGS:
            conn.execute(sql.SQL("ALTER DATABASE {} RESET {}").format(database, sql.Identifier(name)))


def percentile(statements: list[Statement], beginning: str, share: float) -> float:
    """Milliseconds within which that share of the statements stays whose text begins so."""
    times = sorted(each.ms for each in statements if each.text.startswith(beginning))
    if not times:
        raise RuntimeError(f"no statement was executed that begins with {beginning!r}")
    return times[min(len(times) - 1, int(len(times) * share))]
