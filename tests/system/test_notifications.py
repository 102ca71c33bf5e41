"""What supervisors do with notifications, which anybody who may connect can send."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support import invariants, jobs, outages
from tests.support.hooked import Supervised

Conn = psycopg.Connection[Any]

CHANNELS = ("tasuki_job", "tasuki_cancel", "tasuki_command", "tasuki_schedule")
MALFORMED = (
    "",
    " ",
    "default",
    "default ",
    "default -1",
    "default ²",  # a digit, and no number
    "default " + "9" * 12,
    "default " + "9" * 4400,  # more digits than Python's int takes
    "x" * 7999,
    "²" * 3999,
    "no uuid",
    "0192f7a3-0000-7000-8000-00000000000a",  # somebody else's
    "\x01\x7f\u2028\U0001f600",
)


def test_a_supervisor_survives_whatever_is_notified_and_goes_on_listening(dsn: str, conn: Conn) -> None:
    with Supervised(dsn, "--poll", "10m") as supervised:
        supervised.started()
        listener = outages.backend(conn, "tasuki-mp listener")
        jobs.wait_final(conn, jobs.add(conn, handler="note"))  # it has scanned, and would next do so in ten minutes
        for channel in CHANNELS:
            for payload in MALFORMED:
                conn.execute("SELECT pg_notify(%s, %s)", (channel, payload))
        with conn.transaction():
            job_id = jobs.add(conn, handler="note")
            conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
        assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert outages.backend(conn, "tasuki-mp listener") == listener
        assert supervised.stop() == 0
    invariants.check(conn, [job_id])
