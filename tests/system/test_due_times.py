"""A job whose time comes after the last look at the queue starts at that time, and not with the next poll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client
from tests.support import everyday, jobs
from tests.support.hooked import Supervised

APP = "tests.support.everyday:app"
Conn = psycopg.Connection[Any]
SOON = 0.3


def _one(client: Client, conn: Conn) -> int:
    return client.enqueue(everyday.length.job("abc").after(seconds=SOON)).id


def _inside(client: Client, conn: Conn) -> int:
    with conn.transaction():
        return client.enqueue(everyday.length.job("abc").after(seconds=SOON), conn).id


def _unique(client: Client, conn: Conn) -> int:
    return client.enqueue(everyday.length.job("abc").unique("k").after(seconds=SOON)).id


def _many(client: Client, conn: Conn) -> int:
    return client.enqueue_many([everyday.length.job("abc").after(seconds=SOON)])[0]


def _sql(client: Client, conn: Conn) -> int:
    row = conn.execute(
        """SELECT tasuki.enqueue('length', '{"text": "abc"}',
                                 scheduled_at => clock_timestamp() + %s * interval '1 second')""",
        (SOON,),
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("enqueue", [_one, _inside, _unique, _many, _sql])
def test_delayed_jobs_start_when_they_are_due(dsn: str, conn: Conn, enqueue: Callable[[Client, Conn], int]) -> None:
    with Supervised(dsn, "--poll", "1h", app=APP) as supervised, Client(dsn) as client:
        first = client.enqueue(everyday.length.job("a")).id  # when it has ended, the supervisor has looked and is idle
        jobs.wait_final(conn, first)
        assert jobs.wait_final(conn, enqueue(client, conn))["status"] == "completed"
        assert supervised.stop() == 0


@pytest.mark.parametrize("option", ["--notify", "--no-notify"])
@pytest.mark.parametrize("what", ["retry soon", "snooze shortly", "retry", "snooze"])
def test_jobs_go_again_when_they_asked_for_it(dsn: str, conn: Conn, what: str, option: str) -> None:
    job_id = jobs.add(conn, handler="ask", payload={"what": what})
    with Supervised(dsn, option, "--poll", "1h", app=APP) as supervised:
        assert jobs.wait_final(conn, job_id)["result"]["lease_no"] == 2
        assert supervised.stop() == 0


def test_a_job_that_is_due_now_does_not_hide_one_that_will_be(dsn: str, conn: Conn) -> None:
    with Supervised(dsn, "--poll", "1h", app=APP) as supervised, Client(dsn) as client:
        later = [client.enqueue(everyday.length.job("abc").after(seconds=0.2 * n)).id for n in range(1, 5)]
        now = client.enqueue(everyday.length.job("a")).id
        for job_id in (now, *later):
            jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
