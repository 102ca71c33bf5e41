"""The connection is cut at this message or that one: nothing is lost, and nothing is done twice.

`python -m scripts.cut_everywhere` does it at every single message of a run, from the first connection on.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.support import invariants, jobs
from tests.support.hooked import Supervised
from tests.support.proxy import Direction, Fault, FaultProxy
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]

JOBS = 3
SAMPLE = (1, 4, 8)
"""Which of a connection's next messages in one direction; some seven make up a statement and its reply."""


@pytest.mark.parametrize("application", ["lease", "finish"])
def test_cut_at_a_sample_of_messages(dsn: str, conn: Conn, application: str) -> None:
    directions: tuple[Direction, ...] = ("to server", "to client")
    ids: list[int] = []
    with FaultProxy(dsn) as proxy, Supervised(proxy.dsn, "--lease", "3s") as supervised:
        supervised.started()
        for at, direction, is_forwarded in itertools.product(SAMPLE, directions, (False, True)):
            armed = proxy.arm(Fault(at=at, direction=direction, application=application, is_forwarded=is_forwarded))
            while armed.message is None:  # once is not always enough for so many messages
                with conn.transaction():
                    new = [jobs.add(conn, handler="note") for _ in range(JOBS)]
                    conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
                for job_id in new:
                    row = jobs.wait_final(conn, job_id)
                    assert (row["status"], row["attempt"]) == ("completed", 1)
                ids += new
        assert supervised.stop() == 0
        dispatched = Counter(event["job"] for event in supervised.rest() if event["event"] == "job dispatched")
    assert dispatched == dict.fromkeys(ids, 1), "a lost reply is no reason to run a job again"
    invariants.check(conn, ids)


def test_a_lease_whose_reply_is_lost_is_given_back_at_once(dsn: str, conn: Conn) -> None:
    """Committed, and nobody ever heard of it."""
    with FaultProxy(dsn) as proxy, Supervised(proxy.dsn) as supervised:  # no wait below is as long as a lease
        supervised.started()
        has_leased = Fault(direction="to client", tag="C", application="lease", where=lambda m: b"UPDATE 1" in m.body)
        armed = proxy.arm(has_leased)
        job_id = jobs.add(conn, handler="note")
        armed.wait()
        supervised.event("unknown leases given back", jobs=1)
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"], row["lease_no"]) == ("completed", 1, 3)
    assert [(attempt["kind"], attempt["attempt"]) for attempt in jobs.history(conn, job_id)] == [("release", 1)]
    invariants.check(conn, [job_id])


def test_an_outcome_whose_reply_is_lost_is_sent_again_and_known(dsn: str, conn: Conn) -> None:
    with FaultProxy(dsn) as proxy, Supervised(proxy.dsn) as supervised:
        supervised.started()
        armed = proxy.arm(Fault(direction="to client", tag="D", application="finish"))
        job_id = jobs.add(conn, handler="note")
        armed.wait()
        row = wait_until(lambda: jobs.final(conn, job_id))
        supervised.event("finish failed, will send again")
        supervised.event("outcome was written before, its reply was lost", job=job_id)
        assert supervised.stop() == 0
    assert jobs.final(conn, job_id) == row
    invariants.check(conn, [job_id])
