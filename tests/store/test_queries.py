"""Every file in sql/queries: one statement, with a header that says what it does, and Postgres accepts it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasuki_mp import sql, store
from tests.support.versions import COLUMN, widen

NAMES = sql.query_names()
COPY_IN = re.compile(rb"^copy ", re.MULTILINE)
PLACEHOLDER = re.compile(r"%\((\w+)\)[sbt]")
SAMPLES: dict[str, Any] = {
    "after": 0,
    "after_ats": [None, datetime(2020, 1, 1, tzinfo=UTC)],
    "after_ids": [0, 7],
    "again": False,
    "app": "a:app",
    "args": "{}",
    "age": 100.0,
    "ahead": "1 hour",
    "at": None,
    "batch": 1,
    "before": 10,
    "batches": [datetime(2020, 1, 1, tzinfo=UTC)],
    "boot_id": "boot",
    "checkpoints": [None, "{}"],
    "characters": 1000,
    "checksum": "c",
    "crashes": "{0,1}",
    "count": 10,
    "days": 7,
    "delay": 0.0,
    "delays": "{0,1.5}",
    "due_only": True,
    "error": "Timeout",
    "firsts": "{1,10}",
    "errors": [None, "{}"],
    "every": 60.0,
    "examine": 100,
    "first": datetime(2020, 1, 1, tzinfo=UTC),
    "first_block": 0,
    "grace": 600.0,
    "handler": "a",
    "handlers": ["a", "b"],
    "has_live": True,
    "fractions": "{NULL,0.5}",
    "has_progress": "{f,t}",
    "host": "h",
    "id": 1,
    "job_id": 1,
    "size": 10,
    "ids": "{1,2}",
    "is_gone": False,
    "is_patient": False,
    "is_last": False,
    "is_told": True,
    "keep": 50,
    "kinds": "{completed,retry}",
    "known": [1, 2],
    "known_handlers": ["a", "b", "c"],
    "lasts": "{5,20}",
    "last": datetime(2020, 1, 2, tzinfo=UTC),
    "last_block": 10,
    "lease_for": 60.0,
    "lease_nos": "{1,1}",
    "lease_seconds": 60.0,
    "larger": '{"c": {"memory": 9}}',
    "limits": [None, "{}"],
    "limit": 10,
    "mark": "m",
    "max_attempts": 5,
    "most": 10,
    "mosts": [5, 5],
    "name": "n",
    "names": ["a", "b"],
    "notes": ["", "n"],
    "notify": True,
    "now": None,
    "number": 9999,
    "options": ["{}", "{}"],
    "outputs": ["", "o"],
    "own": uuid4(),
    "owner": uuid4(),
    "owners": [uuid4()],
    "payload": "{}",
    "pid": 1,
    "pid_ns": "1",
    "pid_started": 1,
    "pids": "{1,NULL}",
    "priorities": [0, 2],
    "priority": 2,
    "procs": 2,
    "queue": "a",
    "queues": ["a", "b"],
    "soon": ["c"],
    "ran_fors": "{1.5,NULL}",
    "results": [None, "1"],
    "room": '{"memory": 8, "cpus": 2}',
    "seconds": 3600.0,
    "since": datetime(2020, 1, 1, tzinfo=UTC),
    "slots": "{1,NULL}",
    "states": ["pending", "failed"],
    "timeout": "2s",
    "task": "t",
    "to": "b",
    "usages": ["{}", "{}"],
    "ats": [None, datetime(2030, 1, 1, tzinfo=UTC)],
    "key": "k",
    "kind": "stack",
    "reply": "{}",
    "keys": ["k", None],
    "max_running": 3,
    "max_running_per_key": None,
    "most_attempts": [5, 5],
    "on_conflicts": ["skip", None],
    "payloads": ["{}", "{}"],
    "unique_for": [None, 3.0],
    "unique_keys": ["u", None],
    "behind": 0,
    "is_sealed": True,
    "on_complete": None,
    "on_failure": None,
    "on_success": None,
    "state": "{}",
    "versions": "{0,1}",
    "version": "1",
    "waiter": 1,
    "ends_ats": [None, None],
    "f_ats": "{NULL}",
    "f_delays": "{0.5}",
    "f_handlers": ["a"],
    "f_ids": "{1}",
    "f_keys": [None],
    "f_limits": [None],
    "f_max_attempts": "{5}",
    "f_payloads": ["{}"],
    "f_priorities": "{2}",
    "f_queues": ["a"],
    "schedule": "a",
    "is_paused": True,
    "jitters": [0.0, 1.5],
    "misfire_afters": [60.0, 1.0],
    "misfires": ["last", "skip"],
    "overlaps": ["allow", "skip"],
    "passed_overs": [0, 3],
    "schedules": ["a", "b"],
    "source": "app",
    "starts_ats": [None, datetime(2030, 1, 1, tzinfo=UTC)],
    "tick_arguments": [None, "tick"],
    "ticks": [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)],
    "timetables": ["@daily", "every 5s"],
    "tzs": ["UTC", "Europe/Paris"],
    "verdicts": ["fired", "missed"],
}
"""A value for each parameter, by name; what means different things in different files is in `SPECIAL`."""
SPECIAL: dict[str, dict[str, Any]] = {
    "depend": {"id": 1, "ids": [], "on_failure": "run"},
    "enqueue_keyed": {
        "ids": [None, None],
        "priorities": [2, 2],
        "payloads": ["{}", "{}"],
        "delays": [0.0, 1.0],
    },
    "enqueue": {"limits": '{"cpus": 2}'},
    "register_handlers": {"max_attempts": [5, 5]},
    "register_schedules": {"max_attempts": [5, 5]},
}


@pytest.fixture(scope="module", params=["this version's schema", "the next one's"])
def database(request: pytest.FixtureRequest, postgres: Any, template: str) -> Iterator[psycopg.Connection[Any]]:
    with postgres.database(template) as dsn, store.connect(dsn, name="queries") as conn:
        if request.param == "the next one's":
            assert widen(conn) > 10
        yield conn


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(database: psycopg.Connection[Any], name: str) -> None:
    text = sql.query(name)
    wanted = set(PLACEHOLDER.findall(text.decode()))
    samples = SAMPLES | SPECIAL.get(name, {})
    assert wanted <= samples.keys(), f"give SAMPLES or SPECIAL a value for {sorted(wanted - samples.keys())}"
    if COPY_IN.search(text):
        with database.cursor() as cursor, cursor.copy(text):
            pass  # no rows: the statement was accepted
    else:
        cursor = database.execute(text, {parameter: samples[parameter] for parameter in wanted})
        # It names what it answers, so that a column of a later version, which runs beside this one, changes nothing.
        assert COLUMN not in [column.name for column in cursor.description or ()]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_statement_with_a_header(name: str) -> None:
    text = sql.query(name).decode()
    assert text.startswith("-- "), "the header says what it does, what it locks, which index it uses"
    assert text.endswith("\n")
    assert ";" not in re.sub(r"--.*|'[^']*'", "", text), "one statement a file, without a semicolon"
    for comment in re.findall(r"--.*", text):
        assert not re.search(r"%[^%(]", comment), "psycopg reads comments too: a percent sign is written twice"


def test_a_name_without_a_file_fails_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        sql.query("no_such_query")
