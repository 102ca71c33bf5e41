"""`run --drain` while others work: what it waits for is done by somebody else."""

from __future__ import annotations

from typing import Any

import psycopg

from tasuki_mp.config import ExitCode
from tasuki_mp.store import LeaseEntry
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.hooked import Supervised
from tests.support.waiting import wait_until

Conn = psycopg.Connection[tuple[Any, ...]]
SHOP = "tests.support.shop:app"
LOOKED = """
    SELECT FROM pg_stat_activity
     WHERE datname = current_database() AND application_name = 'tasuki-mp upkeep'
       AND (query LIKE '-- How many jobs of these handlers wait%' OR query LIKE '-- Seconds until the earliest job%')
"""


def test_it_waits_for_a_job_elsewhere_that_one_of_its_own_needs(conn: Conn, dsn: str) -> None:
    need = jobs.add(conn, queue="elsewhere", handler="nobody's")
    waiting = jobs.add(conn, handler="scale", payload={"by": 2})
    conn.execute("SELECT tasuki.depend(%s, %s)", (waiting, [need]))
    with Holder(dsn) as other:
        other.register(queues=["elsewhere"], handlers=["nobody's"])
        entry = LeaseEntry(queue="elsewhere", priority=2, limit=1)
        (lease,) = other.lease(1, entries=[entry], handlers=["nobody's"])
        with Supervised(dsn, "--drain", app=SHOP) as supervised:
            supervised.started()
            wait_until(lambda: conn.execute(LOOKED).fetchone() is not None, "it asks what is left")
            other.end(lease, "completed")
            assert supervised.wait() == ExitCode.OK
    assert jobs.status(conn, waiting) == "completed"
