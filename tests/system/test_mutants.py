"""Safeguards that nobody misses until the day they are needed: without each of them, a test must notice.

Each scenario is a function that says whether all went well. One test wants that from the program as it is, and one the
opposite from a program out of which the safeguard was taken.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, cli
from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import NotInTimeError, wait_until

Conn = psycopg.Connection[Any]

LEASE = 3
"""Seconds."""
LONG_LEASE = 60
"""Seconds. Its heartbeats come every twenty, the first at the start."""
PROMPT = 5
"""Seconds. A cancel takes some hundredths of one, were it not for busy machines; without a hint, what is left of twenty."""


def is_lease_prolonged_while_quiescing(dsn: str, conn: Conn, *, mutant: str = "") -> bool:
    """Whether the lease of a job that runs on after the signal to stop outlives its time."""
    with Door() as door, Supervised(dsn, "--lease", f"{LEASE}s", mutant=mutant) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        supervised.signal(signal.SIGTERM)
        supervised.event("stopping")
        stopping = conn.execute("SELECT now() + %s * interval '1 second'", (2 * LEASE,)).fetchone()

        def verdict() -> tuple[bool] | None:
            return conn.execute(
                """SELECT lease_expires_at > now() FROM tasuki.job
                    WHERE id = %s AND (lease_expires_at < now() OR lease_expires_at > %s)""",
                (job_id, stopping and stopping[0]),
            ).fetchone()

        (is_prolonged,) = wait_until(verdict, "the lease expires, or lasts longer than it could without heartbeats")
        visitor.tell("return")
        assert supervised.wait() == 0
    return bool(is_prolonged)


def test_without_a_heartbeat_while_quiescing_the_lease_expires(dsn: str, conn: Conn) -> None:
    assert not is_lease_prolonged_while_quiescing(dsn, conn, mutant="no heartbeat while quiescing")


def test_with_a_heartbeat_while_quiescing_the_lease_lives_on(dsn: str, conn: Conn) -> None:
    assert is_lease_prolonged_while_quiescing(dsn, conn)


def by_sql(dsn: str, job_id: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("SELECT tasuki.cancel(%s)", (job_id,)).fetchone() == ("requested",)


def by_api(dsn: str, job_id: int) -> None:
    with Client(dsn) as client:
        assert client.cancel([job_id]) == {job_id: "requested"}


def by_command(dsn: str, job_id: int) -> None:
    assert cli.exit_code_of(["cancel", str(job_id), "--dsn", dsn]) == 0


def is_cancel_prompt(dsn: str, conn: Conn, cancel: Callable[[str, int], None], *, mutant: str = "") -> bool:
    """Whether a running handler hears of a cancel long before the next regular heartbeat."""
    app = "tests.support.stubborn:app"
    with Supervised(dsn, "--lease", f"{LONG_LEASE}s", "--poll", "20ms", app=app, mutant=mutant) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="go_on", payload={"how": "watch"})
        # A heartbeat out of turn, which brings no news of cancels later.
        wait_until(lambda: (jobs.live(conn, job_id) or {}).get("pid"), "its row says where it runs")
        cancel(dsn, job_id)
        try:
            wait_until(lambda: jobs.final(conn, job_id), "its end", timeout=PROMPT)
        except NotInTimeError:
            return False
        row = jobs.wait_final(conn, job_id)
        assert (row["status"], row["error"]["message"]) == ("canceled", "canceled while it ran")
        assert supervised.stop() == 0
    return True


def test_without_the_hint_a_cancel_waits_for_a_heartbeat(dsn: str, conn: Conn) -> None:
    assert not is_cancel_prompt(dsn, conn, by_sql, mutant="deaf to cancels")


@pytest.mark.parametrize("cancel", [by_sql, by_api, by_command])
def test_a_cancel_reaches_the_handler_at_once(dsn: str, conn: Conn, cancel: Callable[[str, int], None]) -> None:
    assert is_cancel_prompt(dsn, conn, cancel)
