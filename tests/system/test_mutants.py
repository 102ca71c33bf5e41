"""Safeguards that nobody misses until the day they are needed: without each of them, a test must notice.

Each scenario is a function that says whether all went well. One test wants that from the program as it is, and one the
opposite from a program out of which the safeguard was taken.
"""

from __future__ import annotations

import signal
from typing import Any

import psycopg

from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]

LEASE = 3
"""Seconds."""


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
