"""Dropping days whose retention is over: which ones, in the presence of readers, and what goes along."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import Keep
from tasuki_mp.store import queues, retention
from tasuki_mp.store.connect import connect
from tasuki_mp.store.retention import Pruned, prune
from tasuki_mp.store.steps import drive
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.steering import add_day, archive
from tests.support.waiting import wait_for_row

Conn = psycopg.Connection[Any]
DAY = timedelta(days=1)
DAYS = (
    "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tasuki.job_archive_completed'::regclass AND inhdetachpending"
)


@pytest.fixture
def pruning(dsn: str) -> Iterator[Conn]:
    """Patient: a busy machine, or the server's own vacuuming, postpones nothing."""
    with connect(dsn, name="prune", statement_timeout=60, lock_timeout=30) as connection:
        yield connection


def ago(days: float) -> datetime:
    """That long before now; days are UTC."""
    return datetime.now(UTC) - timedelta(days=days)


def names(pruned: Pruned) -> list[str]:
    return sorted(partition.name for partition in pruned.dropped)


def tables(conn: Conn) -> set[str]:
    rows = conn.execute(
        """SELECT relname FROM pg_class
            WHERE relnamespace = 'tasuki'::regnamespace AND relname ~ '_[0-9]{8}$' AND relkind = 'r'"""
    )
    return {name for (name,) in rows}


def test_each_kind_is_kept_for_its_time(conn: Conn, pruning: Conn) -> None:
    for days in (7, 8, 30, 31):
        add_day(conn, ago(days))
    before = tables(conn)
    over = {
        *(f"job_archive_completed_{ago(days):%Y%m%d}" for days in (8, 30, 31)),
        f"job_archive_failed_{ago(31):%Y%m%d}",
        f"attempt_{ago(31):%Y%m%d}",
    }
    assert set(names(drive(pruning, prune(Keep(), dry_run=True)))) == over
    assert tables(conn) == before
    pruned = drive(pruning, prune(Keep()))
    assert set(names(pruned)) == over
    assert pruned.postponed == {}
    assert tables(conn) == before - over
    assert names(drive(pruning, prune(Keep()))) == []
    assert names(drive(pruning, prune(Keep(completed=None, failed=None), now=ago(-1000)))) == []


def test_a_day_is_over_when_its_last_job_is(conn: Conn, pruning: Conn) -> None:
    add_day(conn, datetime(2020, 1, 1, tzinfo=UTC))
    name = "job_archive_completed_20200101"
    edge = datetime(2020, 1, 9, tzinfo=UTC)
    keep = Keep(failed=None)
    assert names(drive(pruning, prune(keep, now=edge - timedelta(microseconds=1), dry_run=True))) == []
    assert names(drive(pruning, prune(keep, now=edge, dry_run=True))) == [name]
    assert name in tables(conn)


def test_checkpoints_go_with_their_jobs(conn: Conn, pruning: Conn) -> None:
    add_day(conn, ago(40))
    (old,) = archive(conn, 1, status="failed", finished_at=ago(40))
    (young,) = archive(conn, 1, status="failed")
    live = jobs.add(conn)
    for job_id in (old, young, live):
        conn.execute("INSERT INTO tasuki.checkpoint (job_id, lease_no, state) VALUES (%s, 1, '{}')", (job_id,))
    drive(pruning, prune(Keep()))
    assert jobs.final(conn, old) is None
    left = conn.execute("SELECT job_id FROM tasuki.checkpoint ORDER BY job_id").fetchall()
    assert left == sorted([(young,), (live,)])


def test_a_reader_delays_it_and_nobody_else(dsn: str, conn: Conn, pruning: Conn, one: Holder) -> None:
    for days in (20, 21):
        add_day(conn, ago(days))
    keep = Keep(failed=None)
    wanted = [f"job_archive_completed_{ago(days):%Y%m%d}" for days in (21, 20)]
    jobs.fill(conn, 1)
    lease = one.lease_one()
    with (
        psycopg.connect(dsn) as reader,
        connect(dsn, name="prune", statement_timeout=1, lock_timeout=0.3) as hasty,
    ):
        reader.execute("SELECT count(*) FROM tasuki.job_archive")
        results: list[Pruned] = []
        at_work = threading.Thread(target=lambda: results.append(drive(hasty, prune(keep))))
        at_work.start()
        wait_for_row(conn, DAYS.replace("count(*)", "1"))
        # While it waits for the reader, jobs end and others read.
        assert one.end(lease, "completed") == ("applied", "completed")
        assert conn.execute("SELECT count(*) FROM tasuki.job_archive").fetchone() == (1,)
        at_work.join(timeout=45)
        (pruned,) = results
        assert pruned.dropped == []
        assert set(pruned.postponed) == set(wanted)
        assert set(wanted) <= tables(conn)
    pruned = drive(pruning, prune(keep))
    assert names(pruned) == sorted(wanted)
    assert not set(wanted) & tables(conn)
    assert conn.execute(DAYS).fetchone() == (0,)


def test_what_was_cut_off_after_the_detaching_is_dropped_the_next_time(conn: Conn, pruning: Conn) -> None:
    for days in (20, 21):
        add_day(conn, ago(days))
    marked, kept = (f"job_archive_completed_{ago(days):%Y%m%d}" for days in (20, 21))
    for name in (marked, kept):
        conn.execute(f"ALTER TABLE tasuki.job_archive_completed DETACH PARTITION tasuki.{name}")
    conn.execute(f"COMMENT ON TABLE tasuki.{marked} IS '{retention.MARK}'")
    assert names(drive(pruning, prune(Keep(failed=None)))) == [marked]
    assert kept in tables(conn), "somebody has detached it to keep it"


def test_two_at_once_drop_each_day_once(dsn: str, conn: Conn) -> None:
    for days in range(20, 26):
        add_day(conn, ago(days))
    results: list[Pruned] = []

    def run() -> None:
        with connect(dsn, name="prune", statement_timeout=20, lock_timeout=10) as mine:
            results.append(drive(mine, prune(Keep(failed=None))))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=45)
    with connect(dsn, name="prune") as mine:
        results.append(drive(mine, prune(Keep(failed=None))))
    dropped = [name for pruned in results for name in names(pruned)]
    assert len(results) == 4
    assert sorted(dropped) == [f"job_archive_completed_{ago(days):%Y%m%d}" for days in range(25, 19, -1)]


def test_a_queue_may_be_kept_shorter(conn: Conn, pruning: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BLOCKS", 1)
    add_day(conn, ago(3))
    old = [*archive(conn, 200, queue="short", finished_at=ago(3)), *archive(conn, 5, queue="short", status="failed")]
    conn.execute(
        "UPDATE tasuki.job_archive_failed SET finished_at = now() - interval '1 min 1 s' WHERE queue = 'short'"
    )
    others = archive(conn, 200, queue="other", finished_at=ago(3))
    young = archive(conn, 5, queue="short")
    for job_id in (old[0], others[0]):
        conn.execute(
            "INSERT INTO tasuki.attempt (job_id, lease_no, attempt, kind, ended_at) VALUES (%s, 1, 1, 'retry', now())",
            (job_id,),
        )
        conn.execute("INSERT INTO tasuki.checkpoint (job_id, lease_no, state) VALUES (%s, 1, '{}')", (job_id,))
    drive(pruning, queues.keep("short", 60))
    assert drive(pruning, prune(Keep())).deleted == {"short": 205}
    left = {job_id for (job_id,) in conn.execute("SELECT id FROM tasuki.job_archive")}
    assert left == {*others, *young}
    for query in ("SELECT job_id FROM tasuki.attempt", "SELECT job_id FROM tasuki.checkpoint"):
        assert conn.execute(query).fetchall() == [(others[0],)]
    (reached,) = conn.execute("SELECT now() - kept_from < '2 min' FROM tasuki.queue").fetchone() or ()
    assert reached is True
    # What is deleted already is not looked at again.
    archive(conn, 1, queue="short", finished_at=ago(3))
    assert drive(pruning, prune(Keep())).deleted == {}
    later = datetime.now(UTC) + timedelta(minutes=2)
    assert drive(pruning, prune(Keep(), now=later)).deleted == {"short": 5}


def test_a_range_of_blocks_is_all_that_a_deletion_reads(conn: Conn) -> None:
    from tasuki_mp import sql

    archive(conn, 2000)
    times = {"first": ago(0.5), "last": ago(-0.5), "states": ["completed"], "queue": "default"}
    plan = conn.execute(
        b"EXPLAIN " + sql.query("delete_finished"), {**times, "first_block": 1, "last_block": 2}, prepare=False
    ).fetchall()
    text = "\n".join(line for (line,) in plan)
    assert "Tid Range Scan on job_archive_completed" in text
    assert "job_archive_failed" not in text


def test_unique_keys_whose_interval_is_over_go(conn: Conn, pruning: Conn) -> None:
    conn.execute(
        """INSERT INTO tasuki.unique_key (key, job_id, expires_at)
           VALUES ('a', 1, now() - interval '1 s'), ('b', 2, now() + interval '1 h'), ('c', 3, NULL)"""
    )
    assert drive(pruning, prune(Keep())).keys == 1
    assert conn.execute("SELECT key FROM tasuki.unique_key ORDER BY key").fetchall() == [("b",), ("c",)]


def test_one_of_the_fleet_takes_on_a_task(one: Holder, two: Holder) -> None:
    from tasuki_mp.store import upkeep

    assert one.run(upkeep.claim, one.conn, "retention", every=60.0) is True
    assert two.run(upkeep.claim, two.conn, "retention", every=60.0) is False
    assert two.run(upkeep.claim, two.conn, "something else", every=60.0) is True
    assert two.run(upkeep.claim, two.conn, "retention", every=0.0) is True, "somebody began too long ago"
    one.run(upkeep.end_claim, one.conn, "retention")
    assert one.run(upkeep.claim, one.conn, "retention", every=60.0) is False


def test_a_batch_goes_when_the_last_of_its_jobs_may_be_gone(conn: Conn, pruning: Conn) -> None:
    conn.execute(
        """INSERT INTO tasuki.batch (name, created_at, sealed_at, ended_at)
           SELECT days::text, now() - interval '40 days', now(), now() - days * interval '1 day'
           FROM unnest(ARRAY[6, 30, 32, 33, null]) AS days"""
    )
    assert drive(pruning, prune(Keep(failed=None))).batches == 0
    assert drive(pruning, prune(Keep())).batches == 2
    names = conn.execute("SELECT name FROM tasuki.batch ORDER BY id").fetchall()
    assert names == [("6",), ("30",), (None,)]
