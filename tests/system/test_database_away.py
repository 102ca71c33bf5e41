"""The database goes away while jobs run: restarted, cut off, in a black hole. Each job is done once all the same."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp import embedded
from tasuki_mp.migrate import migrate
from tasuki_mp.supervisor.supervisor import FLUSH_FOR
from tests.support import invariants, jobs, outages
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.postgres import temporary_folder
from tests.support.proxy import FaultProxy
from tests.support.waiting import wait_for_row, wait_gone, wait_until

Conn = psycopg.Connection[Any]

FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
"""What a postmaster takes for the two modes of its shutdown."""


class Cluster:
    """A server that is stopped and started during the test, and really writes to the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = embedded.start(folder)
        self.dsn = self._server.dsn

    def restart(self, how: signal.Signals) -> None:
        self.stop(how)
        self.start()

    def start(self) -> None:
        self._server = embedded.start(self._folder)

    def stop(self, how: signal.Signals) -> None:
        pid = self._server.pid
        assert pid is not None
        os.kill(pid, how)
        wait_gone(pid)
        self._server.close()

    def connect(self) -> Conn:
        return psycopg.connect(self.dsn, autocommit=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = temporary_folder("tasuki-mp-restart-")
    cluster = Cluster(folder)
    try:
        with cluster.connect() as conn:
            migrate(conn)
        yield cluster
    finally:
        cluster.stop(IMMEDIATE)
        shutil.rmtree(folder)


def test_a_long_job_whose_child_dies_while_the_database_is_away_goes_on_from_its_last_word(cluster: Cluster) -> None:
    with Door() as door, Supervised(cluster.dsn, app="tests.support.steps:app") as supervised:
        with cluster.connect() as conn:
            job_id = jobs.add(conn, handler="steps", payload={"door": door.path})
        visitor = door.visitor()
        visitor.ask("keep 1")
        cluster.stop(IMMEDIATE)
        visitor.ask("checkpoint 2")
        visitor.signal(signal.SIGKILL)
        supervised.event("child died")
        cluster.start()
        again = door.visitor()
        assert (again.restored, again.attempt) == (2, 2)
        cluster.restart(FAST)
        again.ask("keep 3")
        again.tell("return done")
        with cluster.connect() as conn:
            assert jobs.wait_final(conn, job_id)["crashes"] == 1
            assert supervised.stop() == 0
            invariants.check(conn, [job_id])


def test_a_restart_while_a_job_runs_is_nothing_to_the_job(cluster: Cluster) -> None:
    with Door() as door, Supervised(cluster.dsn, procs=2) as supervised:
        with cluster.connect() as conn:
            ids = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
            during, after = door.visitor(), door.visitor()
        cluster.restart(IMMEDIATE)
        during.tell("return at once")
        with cluster.connect() as conn:
            assert jobs.wait_final(conn, during.job)["status"] == "completed"
            assert jobs.status(conn, after.job) == "running"
            after.tell("return later")
            rows = [jobs.wait_final(conn, job_id) for job_id in ids]
            assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
            assert supervised.stop() == 0
            invariants.check(conn, ids)


@pytest.mark.parametrize(("point", "how"), [("after_lease_commit", IMMEDIATE), ("before_finish", FAST)])
def test_a_restart_at_any_point_loses_nothing_and_repeats_nothing(
    cluster: Cluster, point: str, how: signal.Signals
) -> None:
    with cluster.connect() as conn:
        job_id = jobs.add(conn, handler="note", payload={"text": point})
    with Supervised(cluster.dsn, gates=[point]) as supervised:
        gate = supervised.gate()
        cluster.restart(how)
        gate.remove()
        with cluster.connect() as conn:
            row = jobs.wait_final(conn, job_id)
            assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, point)
            assert supervised.stop() == 0
            invariants.check(conn, [job_id])


def test_an_outage_longer_than_the_lease_costs_nothing(dsn: str, conn: Conn) -> None:
    """Nobody could have stolen the job meanwhile, so it is not run again; its outcome waits."""
    with Door() as door, Supervised(dsn, procs=2) as supervised:
        ids = [jobs.add(conn, handler="hold", payload={"door": door.path}) for _ in range(2)]
        during, after = door.visitor(), door.visitor()
        with outages.outage(dsn, conn):
            supervised.event("heartbeat failed")
            during.tell("return in the dark")
            supervised.event("finish failed, will send again")
            conn.execute("UPDATE tasuki.job SET lease_expires_at = now() - interval '1 hour'")
            conn.execute("UPDATE tasuki.supervisor SET seen_at = now() - interval '1 hour'")
        assert jobs.wait_final(conn, during.job)["result"] == "in the dark"
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE id = %s AND lease_expires_at > now()", (after.job,))
        after.tell("return in the light")
        for job_id in ids:
            row = jobs.wait_final(conn, job_id)
            assert (row["status"], row["attempt"], row["lease_no"]) == ("completed", 1, 1)
        assert supervised.stop() == 0
    invariants.check(conn, ids)


def test_at_the_end_of_trust_only_what_asked_for_it_is_killed(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--lease", "3s", procs=2) as supervised:
        ids = [jobs.add(conn, handler=handler, payload={"door": door.path}) for handler in ("hold", "fenced")]
        held, fenced = sorted((door.visitor(), door.visitor()), key=lambda visitor: visitor.job)
        with outages.outage(dsn, conn):
            supervised.event("heartbeat failed")
            fenced.tell("print still here")
            wait_gone(fenced.pid)
            held.tell("print still here")
        again = door.visitor()
        assert (again.job, again.attempt, again.lease_no) == (fenced.job, 1, 2)
        for visitor in (held, again):
            visitor.tell("return in the light")
        rows = [jobs.wait_final(conn, job_id) for job_id in ids]
        assert [(row["status"], row["attempt"], row["lease_no"]) for row in rows] == [
            ("completed", 1, 1),
            ("completed", 1, 2),
        ]
        assert [(past["kind"], past["lease_no"]) for past in jobs.history(conn, fenced.job)] == [("release", 1)]
        assert supervised.stop() == 0
    invariants.check(conn, ids)


def test_a_black_hole_longer_than_the_lease_costs_nothing(dsn: str, conn: Conn) -> None:
    """No packet comes back and no connection is closed: only our own clocks can tell."""
    with (
        FaultProxy(dsn) as proxy,
        Door() as door,
        Supervised(proxy.dsn, "--lease", "1s", "--poll", "100ms") as supervised,
    ):
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        proxy.black_hole()
        visitor.tell("return into the void")
        supervised.event("heartbeat failed")
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE id = %s AND lease_expires_at < now()", (job_id,))
        proxy.heal()
        row = jobs.wait_final(conn, job_id)
        later = jobs.add(conn, handler="note")
        assert jobs.wait_final(conn, later)["attempt"] == 1
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"], row["result"]) == ("completed", 1, "into the void")
    invariants.check(conn, [job_id, later])


def test_a_supervisor_without_a_database_can_be_stopped(dsn: str, conn: Conn) -> None:
    """It can't say how its job ended; another one on the host finds that out."""
    with Door() as door, Supervised(dsn) as supervised:
        job_id = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        with outages.outage(dsn, conn):
            supervised.signal(signal.SIGTERM)
            supervised.event("stopping")
            supervised.signal(signal.SIGTERM)
            wait_gone(visitor.pid)
            supervised.event("finish failed, will send again")
            supervised.signal(signal.SIGTERM)
            assert supervised.wait(timeout=FLUSH_FOR / 2) == 6
    with Door(), Supervised(dsn) as second:
        second.event("job rescued", job=job_id, handler="hold", attempt=1)
        assert second.stop() == 0


def test_every_connection_that_is_killed_while_idle_is_made_anew(dsn: str, conn: Conn) -> None:
    with Supervised(dsn) as supervised:
        supervised.started()
        first = jobs.add(conn, handler="note")
        jobs.wait_final(conn, first)
        supervised.event("job completed", job=first)
        before = {name: outages.backend(conn, f"tasuki-mp {name}") for name in ("lease", "finish", "listener")}
        assert outages.terminate(conn, "tasuki-mp") >= len(before)
        second = jobs.add(conn, handler="note")
        row = jobs.wait_final(conn, second)
        for name, pid in before.items():
            wait_until(lambda name=name, pid=pid: outages.backend(conn, f"tasuki-mp {name}") != pid)
        assert supervised.stop() == 0
    assert (row["status"], row["attempt"]) == ("completed", 1)
    invariants.check(conn, [first, second])


# ── notifications ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_missed_while_nobody_listened_is_found_when_listening_again(dsn: str, conn: Conn) -> None:
    with Supervised(dsn, "--poll", "10m") as supervised:
        supervised.started()
        listener = outages.backend(conn, "tasuki-mp listener")
        jobs.wait_final(conn, jobs.add(conn, handler="note"))  # it has scanned, and would next do so in ten minutes
        with conn.transaction():
            conn.execute("SELECT pg_terminate_backend(%s)", (listener,))
            job_id = jobs.add(conn, handler="note")
        supervised.event("not listening")
        assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert supervised.stop() == 0


@pytest.mark.parametrize("way", ["--no-notify", "a listener that is cut off again and again"])
def test_polling_alone_is_enough(dsn: str, conn: Conn, way: str) -> None:
    options = ("--no-notify",) if way == "--no-notify" else ()
    with FaultProxy(dsn) as proxy, Supervised(proxy.dsn, "--poll", "100ms", *options) as supervised:
        proxy.black_hole("listener")
        supervised.started()
        for _ in range(2):
            job_id = jobs.add(conn, handler="note")
            assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert supervised.stop() == 0


def test_the_listener_is_never_in_a_transaction(dsn: str, conn: Conn) -> None:
    """A listener that is idle in a transaction would keep every notification of the server from being removed."""
    with Supervised(dsn, "--poll", "10m") as supervised:
        supervised.started()
        wait_for_row(
            conn,
            """SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'tasuki-mp listener'
                  AND state = 'idle' AND query LIKE 'LISTEN tasuki_%%'""",
        )
        with conn.transaction():
            job_id = jobs.add(conn, handler="note")
            conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
        jobs.wait_final(conn, job_id)
        invariants.check(conn, [job_id], at_rest=False)
        assert conn.execute("SELECT pg_notification_queue_usage() < 0.01").fetchone() == (True,)
        assert supervised.stop() == 0
