"""What follows on each kind of failure: by default, and where its handler has a rule for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from tests.support import invariants, jobs
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres
from tests.support.ruled import PROVOKED
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]
APP: Final = "tests.support.ruled:app"
IN_AN_HOUR: Final = "SELECT scheduled_at > now() + interval '50 minutes' FROM tasuki.job WHERE id = %s"


@pytest.fixture(scope="module")
def shared(postgres: Postgres, template: str) -> Iterator[Conn]:
    """A database with a supervisor, for all tests here that leave it alone."""
    with (
        postgres.database(template) as dsn,
        psycopg.connect(dsn, autocommit=True) as connection,
        Supervised(dsn, "--poll", "20ms", app=APP, procs=2) as supervised,
    ):
        supervised.started()
        yield connection
        assert supervised.stop() == 0
        invariants.check(connection)


def pending(conn: Conn, job_id: int) -> jobs.Row:
    """The job's row, once its first attempt is over and it waits for another."""

    def row() -> jobs.Row | None:
        found = jobs.live(conn, job_id)
        return found if found is not None and found["status"] == "pending" and jobs.history(conn, job_id) else None

    found = wait_until(row, f"job {job_id} waits")
    assert found is not None
    return found


@pytest.mark.parametrize("kind", PROVOKED)
def test_each_kind_of_failure_is_followed_by_what_its_rule_says(shared: Conn, kind: str) -> None:
    default, again, fail = (
        jobs.add(shared, handler=f"{kind}.{rule}", max_attempts=2) for rule in ("default", "again", "fail")
    )

    for job_id, attempt in ((again, 2), (fail, 1)):
        row = jobs.wait_final(shared, job_id)
        assert (row["status"], row["attempt"], row["error"]["kind"]) == ("failed", attempt, kind)
    # Where both slots are busy for long, a job may also have been given back, unstarted.
    errors = [attempt["error"] for attempt in jobs.history(shared, again) if attempt["kind"] != "release"]
    assert [error["kind"] for error in errors] == [kind]
    if kind == "bad_result":
        assert jobs.wait_final(shared, default)["attempt"] == 1, "it would end the same"
    else:
        assert pending(shared, default)["last_error"]["kind"] == kind
        assert shared.execute(IN_AN_HOUR, [default]).fetchone() == (True,)


@pytest.mark.parametrize("kind", ["interrupted", "lost"])
def test_a_rule_says_what_becomes_of_a_job_whose_supervisor_goes(dsn: str, conn: Conn, kind: str) -> None:
    again, fail = (jobs.add(conn, handler=f"{kind}.{rule}") for rule in ("again", "fail"))
    with Supervised(dsn, "--grace", "0s", app=APP, procs=2) as supervised:
        for job_id in (again, fail):
            wait_until(lambda job_id=job_id: (jobs.live(conn, job_id) or {}).get("pid"), "it runs")
        if kind == "interrupted":
            supervised.stop()
        else:
            supervised.kill()
    with Supervised(dsn, "--queue", "none", app=APP) as another:
        another.started()
        row = jobs.wait_final(conn, fail)
        assert (row["status"], row["error"]["kind"]) == ("failed", kind)
        assert pending(conn, again)["attempt"] == (0 if kind == "interrupted" else 1)
        assert conn.execute(IN_AN_HOUR, [again]).fetchone() == (True,)
        assert another.stop() == 0
    invariants.check(conn)
