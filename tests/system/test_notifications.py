"""What supervisors do with notifications, which anybody may send; which they send; and what if none can be sent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tasuki_mp import embedded
from tasuki_mp.migrate import migrate
from tasuki_mp.supervisor.hints import BURST, PER_SECOND
from tests.support import invariants, jobs, outages
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.listening import heard, listening
from tests.support.postgres import temporary_folder
from tests.support.waiting import wait_until

Conn = psycopg.Connection[Any]

CHANNELS = ("tasuki_job", "tasuki_cancel", "tasuki_command", "tasuki_schedule")
FOLLOWING = "tests.support.following:app"
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


def test_a_flood_makes_few_heartbeats_and_a_cancel_in_it_is_heard(dsn: str, conn: Conn) -> None:
    conn.execute("CREATE SEQUENCE beats")
    conn.execute(
        """CREATE FUNCTION count_beat() RETURNS trigger LANGUAGE plpgsql
           AS $$ BEGIN PERFORM nextval('beats'); RETURN new; END $$"""
    )
    conn.execute("CREATE TRIGGER beat BEFORE UPDATE ON tasuki.supervisor FOR EACH ROW EXECUTE FUNCTION count_beat()")
    with Door() as door, Supervised(dsn, "--poll", "10m") as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        door.visitor()  # it stands there until `Canceled` is raised in it
        (owner,) = conn.execute("SELECT owner::text FROM tasuki.supervisor").fetchone() or ("",)
        began = time.monotonic()
        for _ in range(2000):
            conn.execute("SELECT pg_notify('tasuki_cancel', %s), pg_notify('tasuki_schedule', '')", (owner,))
        jobs.cancel(conn, job_id)
        assert jobs.wait_final(conn, job_id)["status"] == "canceled"
        took = time.monotonic() - began
        (beats,) = conn.execute("SELECT last_value FROM beats").fetchone() or (0,)
        assert supervised.stop() == 0
    # Some of its own come beside them: at the start, for a job that has just begun, and the round of the rescuer.
    assert beats <= BURST + PER_SECOND * took + 10


# ── those that a supervisor sends ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["--notify", "--no-notify"])
def test_with_no_notify_nobody_hears_of_a_job_that_is_due_again_or_is_waited_for(
    dsn: str, conn: Conn, option: str
) -> None:
    with listening(dsn, "tasuki_job") as listener:
        for channel in (*CHANNELS, "tasuki_done", "tasuki_batch"):
            listener.execute(f"LISTEN {channel}")
        with Supervised(dsn, option, "--poll", "50ms", app=FOLLOWING) as supervised:
            supervised.started()
            heard(listener, "tasuki_job")
            with conn.transaction():
                again = jobs.add(conn, handler="ask", payload={"count": 1, "end": "snooze"})
                alone = jobs.add(conn, handler="chain", payload={"left": 1})
                conn.execute("INSERT INTO tasuki.waiter (job_id) VALUES (%s)", (again,))
            for job_id in (again, alone):
                assert jobs.wait_final(conn, job_id)["status"] == "completed"
            assert supervised.stop() == 0
        told = set(heard(listener, "tasuki_job"))
    if option == "--notify":
        assert told >= {"default 0", "leaves 0", str(again)}
    else:
        assert told == set()


# ── those that can't be sent ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """The dsn of a server whose queue of notifications is the smallest that there can be, half a megabyte."""
    folder = temporary_folder("tasuki-mp-small-")
    try:
        with embedded.start(folder, fsync=False, settings={"max_notify_queue_pages": "64"}) as server:
            migrate(server.dsn)
            yield server.dsn
        assert server.wait_stopped()
    finally:
        shutil.rmtree(folder)


@contextmanager
def full_queue(dsn: str) -> Iterator[None]:
    """While somebody listens in an open transaction, nothing leaves the queue, and nothing more goes in."""
    with psycopg.connect(dsn) as idle, psycopg.connect(dsn, autocommit=True) as conn:
        idle.execute("LISTEN whatever")
        idle.commit()
        idle.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):  # noqa: PT012 -- one of them, not known which
            while True:
                conn.execute("SELECT pg_notify('whatever', repeat('x', 7999))")
        # What was left of the last page is too little for the shortest.
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):  # noqa: PT012
            while True:
                conn.execute("NOTIFY whatever")
        yield


def room_again(conn: Conn) -> None:
    """Wait until the queue is empty: whoever asks how full it is clears it up."""
    wait_until(lambda: conn.execute("SELECT pg_notification_queue_usage() < 0.5").fetchone() == (True,))


def test_a_full_queue_of_notifications_fails_no_job(small: str) -> None:
    with (
        psycopg.connect(small, autocommit=True) as conn,
        Supervised(small, "--poll", "50ms", app=FOLLOWING, procs=2) as supervised,
    ):
        supervised.started()
        with full_queue(small):
            with conn.transaction():
                ids = [jobs.add(conn, handler="ask", payload={"count": 2, "end": "snooze"}) for _ in range(5)]
                ids += [jobs.add(conn, handler="chain", payload={"left": 2}) for _ in range(3)]
                for job_id in ids:
                    conn.execute("INSERT INTO tasuki.waiter (job_id) VALUES (%s)", (job_id,))
            for job_id in ids:
                row = jobs.wait_final(conn, job_id)
                assert (row["status"], row["error"], row["attempt"]) == ("completed", None, 1)
        room_again(conn)
        assert supervised.stop() == 0
        warnings = [event for event in supervised.rest() if event.get("level") in {"warning", "error"}]
        assert [warning["event"] for warning in warnings] == ["notifications refused, none sent for now"]
        invariants.check(conn, ids)


def test_an_outcome_that_the_database_itself_would_tell_of_waits_for_room_in_a_full_queue(small: str) -> None:
    """A key that becomes free is told by a trigger, whatever the supervisor says."""
    with (
        psycopg.connect(small, autocommit=True) as conn,
        Supervised(small, "--poll", "50ms", "--queue", "keyed", "--queue", "default", app=FOLLOWING) as supervised,
    ):
        conn.execute("SELECT tasuki.limit_queue('keyed', null, 1)")
        supervised.started()
        with full_queue(small):
            first = jobs.add(conn, handler="chain", queue="keyed", key="k", payload={"left": 0})
            second = jobs.add(conn, handler="chain", payload={"left": 0})
            supervised.event("finish failed, will send again")
            assert jobs.wait_final(conn, second)["status"] == "completed"
            supervised.event("finish failed, will send again")
            assert jobs.status(conn, first) == "running"
        room_again(conn)
        row = jobs.wait_final(conn, first)
        assert (row["status"], row["error"], row["attempt"]) == ("completed", None, 1)
        assert supervised.stop() == 0
        invariants.check(conn, [first, second])
