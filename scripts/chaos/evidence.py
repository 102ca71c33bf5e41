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


def _executions(journal: Path) -> Iterator[tuple[Any, ...]]:
    begun: dict[tuple[str, ...], list[Any]] = {}
    done: list[list[Any]] = []
    with journal.open(encoding="ascii") as lines:
        for line in lines:
            what, job, lease_no, attempt, supervisor, pid, at = line.rstrip("\n").split("\t")
            key = (job, lease_no, supervisor, pid)
            when = datetime.fromtimestamp(float(at), UTC)
            if what == "begin":
                if key in begun:  # the same process ran the same lease again: show it as what it is, two executions
                    done.append(begun.pop(key))
                begun[key] = [int(job), int(lease_no), int(attempt), supervisor, int(pid), when, None]
            else:
                execution = begun.pop(key)
                execution[-1] = when
                done.append(execution)
    for execution in (*done, *begun.values()):
        yield tuple(execution)


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
