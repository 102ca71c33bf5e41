"""What is wrong, or will be: questions to the database, and what `judgements` makes of their answers.

Another part that has something to look after adds its own to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg.rows import class_row

from tasuki_mp import sql
from tasuki_mp.store import look, retention, tls
from tasuki_mp.store.judgements import (
    Finding,
    Holder,
    Server,
    Severity,
    TableState,
    judge_batches,
    judge_clock,
    judge_held,
    judge_horizon,
    judge_names,
    judge_partitions,
    judge_schedule,
    judge_server,
    judge_stuck,
    judge_supervisors,
    judge_tables,
    judge_upkeep,
)
from tasuki_mp.store.look import Connection
from tasuki_mp.store.steps import drive

_SERVER: Final = sql.query("examine_server")
_HORIZON: Final = sql.query("examine_horizon")
_TABLES: Final = sql.query("examine_tables")
_STUCK: Final = sql.query("examine_stuck")
_BATCHES: Final = sql.query("examine_batches")
_NAMES: Final = sql.query("examine_names")
_HELD: Final = sql.query("examine_held")
_UPKEEP: Final = sql.query("examine_upkeep")
_SCHEDULES: Final = sql.query("look_schedules")


def _server(conn: Connection) -> Iterator[Finding]:
    started = monotonic()
    with conn.cursor(row_factory=class_row(Server)) as cursor:
        server = cursor.execute(_SERVER).fetchone()
    if server is None:
        return
    yield from judge_server(server)
    yield from judge_clock(datetime.now(UTC), server.now, within=monotonic() - started)


def _horizon(conn: Connection) -> Iterator[Finding]:
    with conn.cursor(row_factory=class_row(Holder)) as cursor:
        yield from judge_horizon(cursor.execute(_HORIZON).fetchall())


def _tables(conn: Connection) -> Iterator[Finding]:
    with conn.cursor(row_factory=class_row(TableState)) as cursor:
        yield from judge_tables(cursor.execute(_TABLES).fetchall())


def _supervisors(conn: Connection) -> Iterator[Finding]:
    with look.snapshot(conn):
        supervisors = look.supervisors(conn)
        depths = look.queue_depths(conn)
        unknown = look.unknown_handlers(conn)
    yield from judge_supervisors(supervisors, depths, unknown)


def _stuck(conn: Connection) -> Iterator[Finding]:
    with look.snapshot(conn):
        row = conn.execute(_STUCK, {"now": None}).fetchone()
    if row is not None:
        yield from judge_stuck(*row)


def _names(conn: Connection) -> Iterator[Finding]:
    for handlers, example, apps in conn.execute(_NAMES).fetchall():
        yield from judge_names(handlers, example, apps)


def _held(conn: Connection) -> Iterator[Finding]:
    row = conn.execute(_HELD).fetchone()
    if row is not None:
        yield from judge_held(*row)


def _batches(conn: Connection) -> Iterator[Finding]:
    row = conn.execute(_BATCHES).fetchone()
    if row is not None:
        yield from judge_batches(*row)


def _partitions(conn: Connection) -> Iterator[Finding]:
    found = drive(conn, retention.partitions())
    yield from judge_partitions(found, found[0].now if found else datetime.now(UTC))


def _upkeep(conn: Connection) -> Iterator[Finding]:
    row = conn.execute(_UPKEEP).fetchone()
    if row is not None:
        yield from judge_upkeep(*row)


def _schedules(conn: Connection) -> Iterator[Finding]:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        for schedule in cursor.execute(_SCHEDULES, {"name": None}).fetchall():
            if not schedule["is_known"] and schedule["paused_at"] is None:
                yield from judge_schedule(schedule["name"])


def _connection(conn: Connection) -> Iterator[Finding]:
    if (risk := tls.unverified(conn.info.dsn)) is not None:
        yield Finding("tls", "warning", str(risk), risk.advice)


Check = Callable[[psycopg.Connection[tuple[Any, ...]]], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    _server,
    _horizon,
    _tables,
    _supervisors,
    _names,
    _stuck,
    _held,
    _batches,
    _partitions,
    _upkeep,
    _schedules,
    _connection,
)


def examine(conn: Connection) -> list[Finding]:
    """Everything that was found, the worst first."""
    order: dict[Severity, int] = {"problem": 0, "warning": 1, "note": 2}
    findings = [finding for check in CHECKS for finding in check(conn)]
    return sorted(findings, key=lambda finding: order[finding.severity])
