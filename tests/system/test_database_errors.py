"""What Postgres may answer to a supervisor: refusals that pass, refusals that don't, locks that somebody holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support import invariants, jobs, outages
from tests.support.door import Door
from tests.support.hooked import Supervised, supervisors
from tests.support.waiting import wait_for_row, wait_until

Conn = psycopg.Connection[Any]


def refuse(conn: Conn, sqlstate: str, *, on: str = "job_archive", when: str = "true", times: int | None = None) -> None:
    """Let writes to that table fail with this SQLSTATE, the first `times` times or until `relent`. One table a test."""
    # Sequences are not rolled back with the statement that is refused.
    conn.execute("CREATE SEQUENCE IF NOT EXISTS refusals; ALTER SEQUENCE refusals RESTART")
    limit = "true" if times is None else f"nextval('refusals') <= {times}"
    _decide(
        conn,
        f"IF ({when}) AND {limit} THEN RAISE EXCEPTION 'refused by the test' USING ERRCODE = '{sqlstate}'; END IF;",
    )
    if conn.execute("SELECT 1 FROM pg_trigger WHERE tgname = 'refuse'").fetchone() is None:
        trigger = f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tasuki.{on} FOR EACH ROW EXECUTE FUNCTION refuse()"
        conn.execute(trigger.encode())


def relent(conn: Conn) -> None:
    """Refuse nothing more. The trigger stays: to drop it would take a lock that the supervisor's statements wait for."""
    _decide(conn, "")


def _decide(conn: Conn, what: str) -> None:
    function = (
        f"CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what} RETURN new; END $$"
    )
    conn.execute(function.encode())


TRANSIENT = {
    "40P01": "deadlock",
    "40001": "could not serialize",
    "57014": "statement timeout",
    "25P03": "idle in transaction for too long",
    "53100": "disk full",
    "53200": "out of memory",
    "53400": "configuration limit exceeded",
    "XX000": "internal error",
}


def test_an_outcome_that_is_refused_for_now_is_sent_until_it_is_written(dsn: str, conn: Conn) -> None:
    with Supervised(dsn) as supervised:
        supervised.started()
        for sqlstate, what in TRANSIENT.items():
            refuse(conn, sqlstate, times=1)
            job_id = jobs.add(conn, handler="note", payload={"text": what})
            conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
            supervised.event("finish failed, will send again")
            row = jobs.wait_final(conn, job_id)
            assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, what)
            relent(conn)
        assert supervised.stop() == 0
    invariants.check(conn)


def test_an_outcome_that_can_never_be_stored_fails_its_job_alone(dsn: str, conn: Conn) -> None:
    with Supervised(dsn) as supervised:
        supervised.started()
        for sqlstate in ("22P05", "54000", "23514"):
            if (
                sqlstate == "23514"
            ):  # without a constraint's name it says that a partition is missing, and that is mended
                conn.execute("ALTER TABLE tasuki.job_archive ADD CONSTRAINT no_poison CHECK (result <> '\"poison\"')")
            else:
                refuse(conn, sqlstate, when="new.result = '\"poison\"'")
            with conn.transaction():
                texts = ["fine"] * 5 + ["poison"] + ["fine"] * 5
                ids = [jobs.add(conn, handler="note", payload={"text": text}) for text in texts]
            rows = [jobs.wait_final(conn, job_id) for job_id in ids]
            error = rows[5]["error"]
            assert (rows.pop(5)["status"], error["type"], error["kind"]) == (
                "failed",
                "ResultNotStorable",
                "bad_result",
            )
            assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
            if sqlstate != "23514":
                relent(conn)
        assert supervised.stop() == 0
    invariants.check(conn)


def test_an_outcome_that_is_refused_even_as_a_failure_holds_up_nobody(dsn: str, conn: Conn) -> None:
    refuse(conn, "22000", when="new.payload ->> 'text' = 'poison'")
    with Supervised(dsn) as supervised:
        with conn.transaction():
            ids = [jobs.add(conn, handler="note", payload={"text": text}) for text in ("poison", "fine", "fine")]
        for job_id in ids[1:]:
            assert jobs.wait_final(conn, job_id)["status"] == "completed"
        relent(conn)
        assert jobs.wait_final(conn, ids[0])["error"]["type"] == "ResultNotStorable"
        assert supervised.stop() == 0
    invariants.check(conn, ids)


def test_a_partition_that_is_missing_is_made(dsn: str, conn: Conn) -> None:
    with Supervised(dsn) as supervised:
        supervised.started()
        (name,) = conn.execute(
            """SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relname LIKE 'job_archive_completed_%'
                  AND c.relname LIKE to_char(now() AT TIME ZONE 'UTC', '%YYYYMMDD')"""
        ).fetchone() or ("",)
        conn.execute(f"DROP TABLE {name}".encode())
        job_id = jobs.add(conn, handler="note")
        assert jobs.wait_final(conn, job_id)["status"] == "completed"
        supervised.event("a partition was missing, creating it")
        assert supervised.stop() == 0


def test_leasing_that_is_refused_is_tried_again_and_not_all_the_time(dsn: str, conn: Conn) -> None:
    refuse(conn, "53100", on="job", when="new.status = 'running'")
    job_id = jobs.add(conn, handler="note")
    with Supervised(dsn) as supervised:
        times = [datetime.fromisoformat(supervised.event("lease refused", sqlstate="53100")["time"]) for _ in range(6)]
        # Each pause is twice as long as the one before, give or take a half.
        assert max(later - earlier for earlier, later in pairwise(times)).total_seconds() > 0.4
        relent(conn)
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"]) == ("completed", 1)
    invariants.check(conn, [job_id])


@pytest.fixture
def worker(dsn: str, conn: Conn) -> Iterator[str]:
    """The name of a role that may do what a supervisor does, and is no superuser: only such a one can find no place."""
    role = f"worker_{conn.info.backend_pid}"
    conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'".encode())
    for rights in ("USAGE ON SCHEMA", "ALL ON ALL TABLES IN SCHEMA", "ALL ON ALL SEQUENCES IN SCHEMA"):
        conn.execute(f"GRANT {rights} tasuki TO {role}".encode())
    yield role
    conn.execute(f"DROP OWNED BY {role}".encode())
    conn.execute(f"DROP ROLE {role}".encode())


def test_a_server_without_a_free_place_is_waited_for(dsn: str, conn: Conn, worker: str) -> None:
    """SQLSTATE 53300, "too many connections"."""
    with Door() as door, Supervised(make_conninfo(dsn, user=worker, password="secret")) as supervised:  # noqa: S106
        running = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        conn.execute(f"ALTER ROLE {worker} CONNECTION LIMIT 0".encode())
        outages.terminate(conn, "tasuki-mp")
        job_id = jobs.add(conn, handler="note")
        visitor.tell("return kept")
        for name in ("lease failed", "finish failed, will send again", "heartbeat failed"):
            while "too many connections" not in supervised.event(name)["error"]:
                continue  # the first says that the connection was lost
        assert jobs.status(conn, running) == "running"
        conn.execute(f"ALTER ROLE {worker} CONNECTION LIMIT -1".encode())
        rows = [jobs.wait_final(conn, each) for each in (running, job_id)]
        assert supervised.stop() == 0
    assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
    invariants.check(conn, [running, job_id])


def test_what_postgres_quotes_of_a_row_is_not_logged(dsn: str, conn: Conn) -> None:
    """ "Failing row contains (…)": the details of a refusal are the payload."""
    conn.execute("ALTER TABLE tasuki.job ADD CONSTRAINT idle CHECK (status <> 'running')")
    conn.execute("ALTER TABLE tasuki.job_archive ADD CONSTRAINT empty CHECK (status <> 'completed')")
    job_id = jobs.add(conn, handler="note", payload={"text": "s3cret"})
    with Supervised(dsn) as supervised:
        refused = supervised.event("lease refused")
        assert refused["error"] == 'new row for relation "job" violates check constraint "idle"'
        conn.execute("ALTER TABLE tasuki.job DROP CONSTRAINT idle")
        error = jobs.wait_final(conn, job_id)["error"]
        assert supervised.stop() == 0
        supervised.rest()
    assert error["type"] == "ResultNotStorable"
    assert "s3cret" not in "\n".join(supervised.log)


def test_when_the_outbox_is_full_nothing_more_is_leased(dsn: str, conn: Conn) -> None:
    """The disk is full: what runs may end, but no more is begun that could not be written down."""
    refuse(conn, "53100")
    with Supervised(dsn, "--poll", "50ms", mutant="an outbox for two") as supervised:
        ids = []
        for _ in range(2):
            ids.append(jobs.add(conn, handler="note"))
            supervised.event("job completed", job=ids[-1])
        supervised.event("finish failed, will send again", waiting=2)  # by now it knows that this is too much
        ids.append(jobs.add(conn, handler="note"))
        for _ in range(2):
            supervised.event("finish failed, will send again", waiting=2)
        row = jobs.live(conn, ids[-1])
        assert row is not None
        assert (row["status"], row["attempt"]) == ("pending", 0)
        relent(conn)
        for job_id in ids:
            assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert supervised.stop() == 0
    invariants.check(conn, ids)


def test_a_server_that_has_become_read_only_is_left(dsn: str, conn: Conn) -> None:
    """After a failover the same connection may lead to a standby. It looks healthy, and must be given up."""
    conn.execute("CREATE SEQUENCE writer")  # not rolled back, so it tells who tried last
    with Door() as door, Supervised(dsn) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        refuse(conn, "25006", when="setval('writer', pg_backend_pid()) > 0")
        visitor.tell("return kept")
        writers = set()
        for _ in range(2):
            supervised.event("finish failed, will send again")
            writers.add(conn.execute("SELECT last_value FROM writer").fetchone())
        assert len(writers) == 2, "each try has a connection of its own"
        relent(conn)
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "kept")


def test_a_database_that_is_set_read_only_is_waited_for(dsn: str, conn: Conn) -> None:
    name = conn.info.dbname
    with Supervised(dsn) as supervised:
        supervised.started()
        conn.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
        outages.terminate(conn, "tasuki-mp")
        job_id = jobs.add(conn, handler="note")
        while "read-only" not in supervised.event("lease failed")["error"]:
            continue  # the first says that the connection was lost
        conn.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'.encode())
        assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert supervised.stop() == 0


def test_while_somebody_has_locked_the_table_everything_waits_and_nothing_is_lost(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--lease", "1s") as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        with conn.transaction():
            conn.execute("LOCK TABLE tasuki.job IN ACCESS EXCLUSIVE MODE")
            visitor.tell("return after the lock")
            for _ in range(2):  # for longer than half a lease
                supervised.event("heartbeat failed")
        row = jobs.wait_final(conn, job_id)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "after the lock")
    invariants.check(conn, [job_id])


def test_a_row_that_somebody_has_locked_keeps_no_other_waiting(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--lease", "1s", procs=2) as supervised:
        ids = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
        visitors = [door.visitor() for _ in ids]
        locked, free = (visitor.job for visitor in visitors)
        with psycopg.connect(dsn) as admin:
            admin.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (locked,))
            expiry = (jobs.live(conn, free) or {})["lease_expires_at"]
            # The other lease is prolonged by more than its length, and its job finishes.
            wait_for_row(
                conn,
                "SELECT 1 FROM tasuki.job WHERE id = %s AND lease_expires_at > %s::timestamptz + interval '1 s'",
                (free, expiry),
            )
            for visitor in visitors:
                visitor.tell("return done")
            assert jobs.wait_final(conn, free)["status"] == "completed"
            more = jobs.add(conn, handler="note")
            assert jobs.wait_final(conn, more)["status"] == "completed"
            assert jobs.status(conn, locked) == "running"
        row = jobs.wait_final(conn, locked)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "done")
    invariants.check(conn, ids)


def test_two_at_the_same_moment_share_the_jobs_whatever_the_database_is_set_to(dsn: str, conn: Conn) -> None:
    """Serializable by default, it would refuse every other statement of two supervisors."""
    name = conn.info.dbname
    conn.execute(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable'.encode())
    conn.execute(f"""ALTER DATABASE "{name}" SET timezone = 'Asia/Kathmandu'""".encode())
    with supervisors(dsn, 2) as pair:
        with psycopg.connect(dsn) as other:
            # Both have sent their lease and wait; the end of this transaction sets them off together.
            other.execute("LOCK TABLE tasuki.job IN ACCESS EXCLUSIVE MODE")
            rows = other.execute(
                "INSERT INTO tasuki.job (queue, handler) SELECT 'default', 'note' FROM generate_series(1, 100) RETURNING id"
            ).fetchall()
            wait_until(lambda: len(waiting_leases(conn)) == 2)
        ids = [job_id for (job_id,) in rows]
        for job_id in ids:
            assert jobs.wait_final(conn, job_id)["attempt"] == 1
        for supervised in pair:
            assert supervised.stop() == 0
            assert not {event["event"] for event in supervised.rest()} & {
                "lease refused",
                "finish failed, will send again",
            }
    invariants.check(conn, ids)


def waiting_leases(conn: Conn) -> list[tuple[Any, ...]]:
    return conn.execute(
        """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
              AND application_name = 'tasuki-mp lease'"""
    ).fetchall()
