"""Loads what a chaos run left outside the database into it: the journal, the logs, the faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from scripts.chaos.faults import Record
from scripts.chaos.fleet import Fleet
from scripts.harness import journal
from scripts.harness.runner import events

_OUTCOME_EVENTS: Final = {
    "outcome was written before, its reply was lost": "duplicate",
    "outcome came too late, dropped": "stale",
}


def load(conn: psycopg.Connection[Any], fleet: Fleet, faults: Iterable[Record]) -> None:
    """Fill the tables of `schema.sql` that are not filled while the run lasts."""
    with (
        conn.cursor() as cursor,
        cursor.copy("COPY chaos.execution (id, lease_no, attempt, supervisor, pid, t0, t1) FROM STDIN") as copy,
    ):
        for row in _executions(fleet.journal):
            copy.write_row(row)
    with conn.cursor() as cursor:
        cursor.executemany("INSERT INTO chaos.fault (at, kind, target, seconds) VALUES (%s, %s, %s, %s)", list(faults))
        cursor.executemany(
            "INSERT INTO chaos.said (supervisor, event, id, lease_no) VALUES (%s, %s, %s, %s)",
            [
                (log.stem, _OUTCOME_EVENTS[event["event"]], event["job"], event["lease_no"])
                for log, event in _said(fleet)
                if event["event"] in _OUTCOME_EVENTS
            ],
        )


def _executions(path: Path) -> Iterator[tuple[Any, ...]]:
    for each in journal.read(path):
        began, ended = (None if at is None else datetime.fromtimestamp(at, UTC) for at in (each.began, each.ended))
        yield each.job, each.lease_no, each.attempt, each.supervisor, each.pid, began, ended


def _said(fleet: Fleet) -> Iterator[tuple[Path, dict[str, Any]]]:
    for log in sorted(fleet.folder.glob("*.log")):
        for event in events(log):
            yield log, event


def totals(conn: psycopg.Connection[Any], fleet: Fleet) -> dict[str, Any]:
    """What happened, in numbers."""
    said = Counter(event["event"] for _, event in _said(fleet))
    with conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute((Path(__file__).parent / "totals.sql").read_bytes()).fetchone()
    assert row is not None
    return {**row, **{f"log: {event}": said[event] for event in sorted(said) if event not in _ROUTINE}}


_ROUTINE: Final = {"job failed", "job will be retried", "job snoozed", "output"}
