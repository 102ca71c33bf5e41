"""The hot statements read what they write and little more, whatever the planner was told about the table.

Looked at is not the plan but what was really read, by the very statements that the store sends, prepared or not: the rows and
index entries that Postgres counts inside the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import sql, store
from tasuki_mp.job import Lease
from tasuki_mp.limits import Reach
from tasuki_mp.store import LeaseEntry
from tasuki_mp.store.keep import KeepItem, keep
from tests.support import jobs
from tests.support.holder import Holder, item

Conn = psycopg.Connection[tuple[Any, ...]]

MANY = 40_000
BATCH = 256
RELATIONS = ("job", "job_pkey", "job_lease", "job_owner", "job_held", "checkpoint", "checkpoint_pkey")
OF_DEPENDENCIES = ("dependency", "dependency_pkey", "dependency_job")
OF_LIMITS = ("queue", "queue_pkey", "job_counted", "job_held_key", "unique_key", "unique_key_pkey")
COUNTS = """
    SELECT c.relname, pg_stat_get_xact_tuples_returned(c.oid)
      FROM pg_class AS c WHERE c.relnamespace = 'tasuki'::regnamespace AND c.relname = any(%s)
"""
Reads = dict[str, int]
MUCH_THAT_IS_NOT = (
    """INSERT INTO tasuki.job (queue, handler, scheduled_at)
       SELECT 'future', 'work', now() + interval '1 hour' + n * interval '1 microsecond'
       FROM generate_series(1, %(many)s) AS n""",
    """INSERT INTO tasuki.job (queue, handler, held_by, key)
       SELECT 'elsewhere', 'work', 'key', 'k' FROM generate_series(1, %(many)s / 4)""",
    """INSERT INTO tasuki.job (queue, handler, held_by)
       SELECT 'small', 'nobody''s', 'handler' FROM generate_series(1, %(many)s / 4)""",
    """WITH need AS (
         INSERT INTO tasuki.job (queue, handler, has_dependents) VALUES ('elsewhere', 'work', true) RETURNING id
       ), dependent AS (
         INSERT INTO tasuki.job (queue, handler, held_by)
         SELECT 'small', 'work', 'dependency' FROM generate_series(1, %(many)s / 4) RETURNING id
       )
       INSERT INTO tasuki.dependency (job_id, needs_id, on_failure)
       SELECT dependent.id, need.id, 'run' FROM dependent CROSS JOIN need""",
)
"""Far more jobs than a drained program has to look at: of the future, held, waiting for one that does not run."""
WHAT_RUNS = (
    """INSERT INTO tasuki.job (handler, has_dependents) SELECT 'nobody''s', true FROM generate_series(1, %(batch)s)""",
    """WITH need AS (
         SELECT id, row_number() OVER (ORDER BY id) AS number FROM tasuki.job WHERE queue = 'default'
       ), dependent AS (
         INSERT INTO tasuki.job (id, queue, handler, held_by)
         SELECT -number, CASE number WHEN 7 THEN 'small' ELSE 'elsewhere' END, 'work', 'dependency' FROM need RETURNING id
       )
       INSERT INTO tasuki.dependency (job_id, needs_id, on_failure)
       SELECT -need.number, need.id, 'run' FROM need""",
)
"""Jobs to be leased, each with one that waits for it, in this queue or another."""


@contextmanager
def counted(conn: Any, run: Callable[..., Any]) -> Iterator[Reads]:
    """Fill a dictionary with what was read of each relation: index entries, or rows of a sequential scan."""

    def seen() -> Reads:
        return dict(run(run(conn.execute, COUNTS, ([*RELATIONS, *OF_LIMITS, *OF_DEPENDENCIES],)).fetchall))

    run(conn.execute, "BEGIN")
    before = seen()  # what Postgres has not yet passed on from earlier transactions
    reads: Reads = {}
    yield reads
    reads.update({name: count - before[name] for name, count in seen().items()})
    run(conn.execute, "COMMIT")


def at_once(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def as_new(conn: Conn, prime: Callable[[], None]) -> None:
    prime()


def vacuumed_empty(conn: Conn, prime: Callable[[], None]) -> None:
    conn.execute("VACUUM ANALYZE tasuki.job")
    prime()


def tiny(conn: Conn, prime: Callable[[], None]) -> None:
    jobs.fill(conn, 3)
    conn.execute("VACUUM ANALYZE tasuki.job")
    prime()


def drained(conn: Conn, prime: Callable[[], None]) -> None:
    jobs.fill(conn, MANY)
    conn.execute("ANALYZE tasuki.job")
    # Nobody marks a row as dead, and passes over it, before its transaction is on disk.
    conn.execute("SET synchronous_commit = on")
    conn.execute("DELETE FROM tasuki.job")
    conn.execute("ANALYZE tasuki.job")  # no rows, and all those pages
    prime()


def full(conn: Conn, prime: Callable[[], None]) -> None:
    jobs.fill(conn, MANY)
    conn.execute("ANALYZE tasuki.job")
    prime()


@pytest.mark.prunes
@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "unprepared"])
@pytest.mark.parametrize("before", [as_new, vacuumed_empty, tiny, drained, full])
def test_a_batch_reads_its_own_rows(
    dsn: str, conn: Conn, before: Callable[[Conn, Callable[[], None]], None], is_prepared: bool
) -> None:
    conn.execute("ALTER TABLE tasuki.job SET (autovacuum_enabled = off)")
    threshold = 5 if is_prepared else None
    with Holder(dsn, prepare_threshold=threshold) as one, Holder(dsn, prepare_threshold=threshold) as two:

        def prime() -> None:
            for holder in (one, two):  # often enough for Postgres to settle for a generic plan
                for _ in range(8):
                    leases = holder.lease(2)
                    holder.beat(*(leases or [NOBODY_S]))
                    holder.call(keep, owner=holder.owner, items=said(*(leases or [NOBODY_S])))
                    holder.finish(*(item(lease, "release") for lease in leases or [NOBODY_S]))
                    holder.rescue(holder.owner)

        before(conn, prime)
        jobs.fill(conn, MANY)
        others = [lease for _ in range(8) for lease in two.lease(BATCH)]

        with counted(one.conn, one.run) as reads:
            leases = one.lease(BATCH)
        assert len(leases) == BATCH
        # Leasing walks over the entries of rows that were leased before it, until they are vacuumed away.
        assert reads["job_lease"] <= BATCH + len(others) + 100
        assert reads["job_pkey"] <= 2 * BATCH + 10
        assert (reads["job"], reads["job_owner"], reads["job_held"]) == (0, 0, 0)

        with counted(one.beat_conn, at_once) as reads:
            assert set(one.beat(*leases)) == {"held"}
        assert reads["job_pkey"] <= 5 * BATCH + 10
        assert (reads["job"], reads["job_lease"], reads["job_owner"], reads["job_held"]) == (0, 0, 0, 0)

        for _ in ("new", "again"):
            with counted(one.conn, one.run) as reads:
                assert len(one.call(keep, owner=one.owner, items=said(*leases))) == BATCH
            assert reads["job_pkey"] <= 4 * BATCH + 10
            assert reads["checkpoint_pkey"] <= 2 * BATCH + 10
            assert (reads["job"], reads["job_lease"], reads["job_owner"], reads["job_held"]) == (0, 0, 0, 0)
            assert reads["checkpoint"] == 0

        kinds = ("completed", "failed", "retry", "release")
        items = [item(lease, kinds[n % 4], delay=9999.0) for n, lease in enumerate(leases)]  # type: ignore[arg-type]
        with counted(one.conn, one.run) as reads:
            assert {answer.verdict for answer in one.finish(*items)} == {"applied"}
        assert reads["job_pkey"] <= 6 * BATCH + 10
        assert (reads["job"], reads["job_lease"], reads["job_owner"], reads["job_held"]) == (0, 0, 0, 0)

        jobs.expire(conn, *(lease.id for lease in others[:100]))
        with counted(one.conn, one.run) as reads:
            assert one.rescue(two.owner) == ["pending"] * 100
        assert reads["job_owner"] <= 2 * len(others) + 100
        assert reads["job_pkey"] <= 8 * 100 + 10
        assert (reads["job"], reads["job_lease"], reads["job_held"]) == (0, 0, 0)


def test_a_queue_without_limits_pays_nothing_for_one_that_has_some(conn: Conn, one: Holder) -> None:
    for name in ("limited", "other"):
        conn.execute("SELECT tasuki.limit_queue(%s, 3, 1)", (name,))
    jobs.fill(conn, MANY)
    for _ in range(8):
        one.finish(*(item(lease, "completed") for lease in one.lease(2)))

    with counted(one.conn, one.run) as reads:
        leases = one.lease(BATCH)
    assert len(leases) == BATCH
    assert reads["queue"] + reads["queue_pkey"] <= 3, "once for the queue, not for each job"
    assert {name: reads[name] for name in OF_LIMITS[2:]} == dict.fromkeys(OF_LIMITS[2:], 0)

    with counted(one.conn, one.run) as reads:
        assert {answer.verdict for answer in one.finish(*(item(lease, "completed") for lease in leases))} == {"applied"}
    assert {name: reads[name] for name in OF_LIMITS} == dict.fromkeys(OF_LIMITS, 0)


@pytest.mark.parametrize("is_prepared", [True, False], ids=["prepared", "unprepared"])
@pytest.mark.parametrize("before", [as_new, vacuumed_empty, tiny, drained, full])
def test_what_is_left_to_drain_is_found_among_much_that_is_not(
    dsn: str, conn: Conn, before: Callable[[Conn, Callable[[], None]], None], is_prepared: bool
) -> None:
    conn.execute("ALTER TABLE tasuki.job SET (autovacuum_enabled = off)")
    with Holder(dsn, prepare_threshold=5 if is_prepared else None) as one:

        def left(queue: str, *, due_only: bool = False) -> int:
            scope = {"queues": [queue], "known_handlers": ["work"], "due_only": due_only, **Reach(("work",)).parameters}
            cursor = one.run(one.conn.execute, sql.query("drain_left"), scope)
            waiting, _ = one.run(cursor.fetchone)
            return int(waiting)

        def prime() -> None:
            for _ in range(8):
                left("small")

        before(conn, prime)
        conn.execute("TRUNCATE tasuki.job")
        for statement in (*MUCH_THAT_IS_NOT, *WHAT_RUNS):
            conn.execute(statement, {"many": MANY, "batch": BATCH})
        assert len(one.lease(BATCH, handlers=["nobody's"])) == BATCH

        for statement in ("SELECT", "ANALYZE tasuki.job, tasuki.dependency"):
            conn.execute(statement)
            with counted(one.conn, one.run) as reads:
                assert left("future", due_only=True) == 0
            assert reads["job_lease"] <= 10
            assert {name: reads[name] for name in ("job", "job_held", "job_held_key")} == dict.fromkeys(
                ("job", "job_held", "job_held_key"), 0
            )

            with counted(one.conn, one.run) as reads:
                assert left("future") == 1000
            assert reads["job_lease"] <= 1000 + 10

            with counted(one.conn, one.run) as reads:
                assert left("small") == 1, "of those that wait for one that runs, one is in this queue"
            assert reads["job_owner"] <= 2 * BATCH + 10
            assert reads["dependency_pkey"] <= BATCH + 10
            assert reads["dependency_job"] <= 2 * BATCH + 10
            assert reads["job_pkey"] <= 3 * BATCH + 10
            assert reads["job_lease"] <= 10
            assert {name: reads[name] for name in ("job", "dependency", "job_held", "job_held_key")} == dict.fromkeys(
                ("job", "dependency", "job_held", "job_held_key"), 0
            )


def test_behind_the_watermark_dead_entries_are_not_read(dsn: str, conn: Conn, one: Holder) -> None:
    """An old transaction keeps what is finished in the index; who starts at the watermark does not notice."""
    jobs.fill(conn, 5_000)
    with psycopg.connect(dsn) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM tasuki.job")
        last: Lease | None = None
        for _ in range(10):
            leases = one.lease(BATCH)
            one.finish(*(item(lease, "completed") for lease in leases))
            last = leases[-1]
        assert last is not None
        mark = LeaseEntry(queue="default", priority=2, after_at=last.scheduled_at, after_id=last.id, limit=BATCH)
        with counted(one.conn, one.run) as reads:
            assert len(one.lease(BATCH, entries=[mark])) == BATCH
        assert reads["job_lease"] <= BATCH + 10
        with counted(one.conn, one.run) as reads:
            assert len(one.lease(BATCH)) == BATCH
        assert reads["job_lease"] > 10 * BATCH, "without it the dead ones are read: the test can fail"


def test_a_duplicate_is_looked_for_only_in_days_that_it_can_be_in(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    one.end(lease, "completed")
    assert one.run(store.ensure_partitions, one.conn, days=90) > 0
    one.run(one.conn.execute, "BEGIN")
    assert one.end(lease, "completed", lease_age=10.0) == ("duplicate", "completed")
    plan = one.run(
        one.run(
            one.conn.execute,
            b"EXPLAIN (ANALYZE, TIMING off, SUMMARY off) " + sql.query("verdict"),
            {"owner": one.owner, "ids": "{1}", "lease_nos": "{1}", "age": 10.0},
        ).fetchall
    )
    one.run(one.conn.execute, "ROLLBACK")
    text = "\n".join(line for (line,) in plan)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y%m%d")
    assert "Subplans Removed" in text
    assert yesterday not in text or datetime.now(UTC).hour == 0


def said(*leases: Lease) -> list[KeepItem]:
    return [
        KeepItem(id=lease.id, lease_no=lease.lease_no, has_progress=True, fraction=0.5, checkpoint="[]", version=1)
        for lease in sorted(leases, key=lambda lease: lease.id)
    ]


NOBODY_S = Lease(
    id=0,
    lease_no=1,
    queue="default",
    handler="work",
    priority=2,
    attempt=1,
    max_attempts=5,
    crashes=0,
    payload="{}",
    scheduled_at=None,  # type: ignore[arg-type]
    waited=0.0,
)
