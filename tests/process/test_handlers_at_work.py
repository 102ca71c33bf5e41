"""What handlers may ask for and get, in real children under a real supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import jobs
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

APP = "tests.support.everyday:app"
Conn = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def dsn(postgres: Postgres, template: str) -> Iterator[str]:
    """One database for all tests here."""
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def conn(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def supervised(dsn: str) -> Iterator[Supervised]:
    """One supervisor with one slot, for all tests here."""
    with Supervised(dsn, "--poll", "100ms", app=APP) as running:
        running.started()
        yield running
        running.stop()


def add(conn: Conn, handler: str, *, max_attempts: int = 3, **payload: Any) -> int:
    return jobs.add(conn, handler=handler, payload=payload, max_attempts=max_attempts)


def result_of(conn: Conn, job_id: int) -> Any:
    row = jobs.wait_final(conn, job_id)
    assert row["status"] == "completed", row["error"]
    return row["result"]


def failed_once(conn: Conn, job_id: int) -> jobs.Row:
    """The job's live row, once it waits for its second attempt."""

    def row() -> jobs.Row | None:
        found = jobs.live(conn, job_id)
        return found if found is not None and found["last_error"] is not None and found["status"] == "pending" else None

    found = wait_until(row, f"the first failure of job {job_id}")
    assert found is not None
    return found


def test_retry_uses_an_attempt_snooze_does_not_and_cancel_is_final(conn: Conn, supervised: Supervised) -> None:
    retried, snoozed, canceled = (add(conn, "ask", what=what) for what in ("retry", "snooze", "cancel"))
    assert result_of(conn, retried) == {"attempt": 2, "is_last": False, "lease_no": 2, "queue": "default"}
    assert result_of(conn, snoozed) == {"attempt": 1, "is_last": False, "lease_no": 2, "queue": "default"}
    row = jobs.wait_final(conn, canceled)
    assert (row["status"], row["error"]["message"]) == ("canceled", "no longer wanted")
    assert [attempt["kind"] for job in (retried, snoozed) for attempt in jobs.history(conn, job)] == ["retry", "snooze"]


def test_what_follows_an_exception_is_up_to_its_type(conn: Conn, supervised: Supervised) -> None:
    again, wait, never = (add(conn, "picky", error=error) for error in ("OSError", "ValueError", "TypeError"))
    assert jobs.wait_final(conn, again)["attempt"] == 3
    assert jobs.wait_final(conn, never)["attempt"] == 1
    failed_once(conn, wait)
    late = "SELECT scheduled_at > now() + interval '55 minutes' FROM tasuki.job WHERE id = %s"
    assert conn.execute(late, [wait]).fetchone() == (True,)


def test_an_error_is_recorded_with_type_message_traceback_and_where_it_happened(
    conn: Conn, supervised: Supervised
) -> None:
    row = jobs.wait_final(conn, add(conn, "picky", error="TypeError"))
    assert (row["error"]["type"], row["error"]["message"]) == ("TypeError", "TypeError")
    assert row["error"]["traceback"].splitlines()[1].strip().startswith("File"), "from the handler's own frame on"
    assert "in picky" in row["error"]["traceback"].splitlines()[1]
    assert row["usage"]["pid"] == result_of(conn, add(conn, "who"))
    assert {"host", "slot", "seconds", "cpu_seconds", "waited_seconds"} <= set(row["usage"])
    assert row["created_at"] <= row["started_at"] <= row["finished_at"]


def test_async_handlers_run(conn: Conn, supervised: Supervised) -> None:
    assert result_of(conn, add(conn, "later", text="here")) == "here"


def test_what_a_job_prints_carries_its_id_whoever_prints(conn: Conn, supervised: Supervised) -> None:
    for text in ("one", "two \x1b[31m"):
        job = add(conn, "say", text=text)
        result_of(conn, job)
        for line in (text, f"below: {text}", f"subprocess: {text}"):
            supervised.event("output", job=job, line=line)


def test_enqueueing_inside_a_handler_is_refused_with_the_way_to_do_it(conn: Conn, supervised: Supervised) -> None:
    row = failed_once(conn, add(conn, "enqueue_inside"))
    assert row["last_error"]["type"] == "tasuki_mp.errors.EnqueueInHandlerError"
    assert "ctx.enqueue" in row["last_error"]["message"]


def test_structlog_knows_the_job_also_where_a_handler_is_the_first_to_import_it(
    conn: Conn, supervised: Supervised
) -> None:
    for _ in range(2):
        job = add(conn, "log_structured")
        facts = {"tasuki_job": job, "tasuki_attempt": 1, "tasuki_handler": "log_structured"}
        assert result_of(conn, job) == [{"event": event, **facts} for event in ("handler", "task", "thread")]


@pytest.mark.parametrize("size", [0, 100_000, 900_000])
def test_payloads_of_every_size_arrive(conn: Conn, supervised: Supervised, size: int) -> None:
    assert result_of(conn, add(conn, "length", text="x" * size)) == size


def test_a_payload_that_does_not_fit_is_tried_again_since_another_release_may_take_it(
    conn: Conn, supervised: Supervised
) -> None:
    error = failed_once(conn, add(conn, "length", no_such=1))["last_error"]
    assert error["kind"] == "bad_payload"
    assert "no_such" in error["message"] or "text" in error["message"]


def test_one_hostile_row_in_a_batch_hurts_only_itself(conn: Conn, supervised: Supervised) -> None:
    deep = "[" * 9000 + "]" * 9000
    hostile = conn.execute(
        """INSERT INTO tasuki.job (handler, queue, payload, max_attempts) VALUES ('length', 'default', %s::jsonb, 1)
           RETURNING id""",
        [f'{{"text": {deep}}}'],
    ).fetchone()
    others = [add(conn, "length", text="fine") for _ in range(9)]
    assert [result_of(conn, other) for other in others] == [4] * 9
    # Without its payload, which the JSON decoder of Python's own library can't read either.
    read = "SELECT status, error FROM tasuki.job_archive WHERE id = %s"
    status, error = wait_until(lambda: conn.execute(read, hostile).fetchone(), "the hostile row's end")
    assert (status, error["kind"]) == ("failed", "bad_payload")


def test_the_queues_dsn_is_no_business_of_handlers(conn: Conn, supervised: Supervised) -> None:
    assert result_of(conn, add(conn, "environment", name="TASUKI_DSN")) is None
    assert result_of(conn, add(conn, "environment", name="OMP_NUM_THREADS")) == os.environ.get("OMP_NUM_THREADS", "1")


def test_the_applications_version_is_recorded_with_its_handlers(conn: Conn, supervised: Supervised) -> None:
    assert conn.execute("SELECT DISTINCT version FROM tasuki.handler").fetchall() == [("7",)]


def test_a_resource_lives_as_long_as_its_child_and_is_closed_with_it(postgres: Postgres, template: str) -> None:
    with (
        postgres.database(template) as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
        Supervised(dsn, app=APP) as running,
    ):
        notes = [add(conn, "jot", number=number) for number in (1, 2)]
        assert [jobs.wait_final(conn, note)["result"] for note in notes] == [[1], [1, 2]]
        pid = jobs.wait_final(conn, notes[0])["usage"]["pid"]
        running.event("output", line=f"notebook opened {pid}")
        running.stop()
        assert f"notebook closed {pid}" in [event.get("line") for event in running.rest()]


MANY = """
from tasuki_mp import Retry, Tasuki

app = Tasuki()

def number(of: int) -> None:
    @app.handler(name=f"number_{of}", on_crash=Retry(3600), timeout=60)
    def handler() -> int:
        return of

for of in range(2000):
    number(of)
"""


def test_an_application_may_have_thousands_of_handlers(dsn: str, conn: Conn, tmp_path: Path) -> None:
    tmp_path.joinpath("many.py").write_text(MANY, encoding="utf-8")
    with Supervised(dsn, "--app-dir", str(tmp_path), app="many:app") as running:
        assert running.started()["handlers"] == 2000
        assert result_of(conn, add(conn, "number_1999")) == 1999
        assert running.stop() == 0
