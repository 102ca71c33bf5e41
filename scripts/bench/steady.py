"""The steady rate: how fast jobs end in the middle of a long run, and tables filled for it.

Jobs are known by their ids, so that whatever else is in the tables costs the measurement nothing: the rate is that of the
jobs from the `skip`-th end to the last one's, by the database's clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from scripts.bench import app, meter
from scripts.bench.stage import Stage
from scripts.harness.waiting import wait

PATIENCE: Final = 600.0

_HEAD: Final = b"""
SELECT id FROM tasuki.job
 WHERE status = 'pending' AND held_by IS NULL AND queue = 'default' AND priority = 2 AND handler = 'noop'
   AND scheduled_at <= now()
 ORDER BY scheduled_at, id LIMIT %s
"""
_DUE: Final = b"""
INSERT INTO tasuki.job (queue, handler, payload, scheduled_at)
SELECT 'default', %s, '{}', now() + (%s + n * 0.000001) * interval '1 second' FROM generate_series(1, %s) AS n
"""
_ARCHIVED: Final = b"""
INSERT INTO tasuki.job_archive (id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, usage,
                                created_at, scheduled_at, started_at, finished_at, lease_no)
SELECT nextval('tasuki.job_id_seq'), 'noop', 'default', 'completed', '{}', 1, 5, 0, 2,
       '{"pid": 1, "slot": 0, "host": "bench", "seconds": 0.0001, "waited": 1.5}', now(), now(), now(), now(), 1
  FROM generate_series(1, %s)
"""


@dataclass(frozen=True)
class Window:
    """How many jobs end before the measurement begins, and how many are measured."""

    skip: int
    measured: int

    @property
    def jobs(self) -> int:
        return self.skip + self.measured


def window(jobs: int) -> Window:
    """Out of so many jobs: the first third is not measured, the last tenth not waited for."""
    return Window(skip=jobs // 3, measured=jobs - jobs // 3 - jobs // 10)


def add_noops(conn: psycopg.Connection[Any], jobs: int) -> list[int]:
    """Enqueue jobs that do nothing; their ids, in the order in which they will be taken."""
    return list(app.app.enqueue_many(itertools.repeat(app.noop.job(), jobs), conn))


def fill_due(conn: psycopg.Connection[Any], jobs: int, *, handler: str = "noop", after: float = -3600.0) -> None:
    """Jobs that have waited for an hour, or become due so many seconds from now; as producers would have left them."""
    conn.execute(_DUE, (handler, after, jobs))


def fill_archive(conn: psycopg.Connection[Any], jobs: int) -> None:
    """Jobs completed today, in the partition that new ones go to."""
    conn.execute(_ARCHIVED, (jobs,))


def settle(conn: psycopg.Connection[Any]) -> None:
    """What autovacuum has done by the time that so many jobs have piled up one by one; and no dirty page is left."""
    conn.execute("VACUUM (ANALYZE) tasuki.job")
    conn.execute("VACUUM (ANALYZE) tasuki.job_archive")
    conn.execute("CHECKPOINT")


def head(conn: psycopg.Connection[Any], jobs: int) -> list[int]:
    """The ids of the no-op jobs that will be taken next."""
    return [row[0] for row in conn.execute(_HEAD, (jobs,))]


def await_last(conn: psycopg.Connection[Any], ids: Sequence[int]) -> None:
    """Until the last of these jobs has left the live table."""
    query = "SELECT 1 FROM tasuki.job WHERE id = %s"
    if not wait(lambda: conn.execute(query, (ids[-1],)).fetchone() is None, PATIENCE):
        raise RuntimeError(f"job {ids[-1]} has not ended within {PATIENCE:.0f} s")


def await_none(conn: psycopg.Connection[Any]) -> None:
    """Until the live table is empty."""
    if not wait(lambda: conn.execute("SELECT FROM tasuki.job LIMIT 1").fetchone() is None, PATIENCE):
        raise RuntimeError(f"jobs are left after {PATIENCE:.0f} s")


def ends(conn: psycopg.Connection[Any], ids: Sequence[int]) -> list[float]:
    """When those of these jobs that have ended did so, in order; seconds of the wall clock."""
    query = "SELECT extract(epoch FROM finished_at)::float8 FROM tasuki.job_archive WHERE id = ANY(%s) ORDER BY 1"
    return [row[0] for row in conn.execute(query, (list(ids),))]


def rate(times: Sequence[float], first: int, last: int) -> float:
    """Ends a second between two of them."""
    return (last - first) / (times[last] - times[first])


def head_rate(stage: Stage, jobs: int) -> tuple[float, float]:
    """The steady rate of a supervisor started for it, over the next so many no-op jobs; and CPU seconds for each of them."""
    ids = head(stage.conn, jobs)
    if len(ids) < jobs:
        raise RuntimeError(f"only {len(ids)} of {jobs} jobs are due")
    over = window(jobs)
    with (
        closing(stage.supervisor()) as runner,
        closing(meter.Followed(runner.pid, stage.procs, stage.conn)) as followed,
    ):
        await_last(stage.conn, ids[: over.jobs])
        stage.stop(runner)
    times = ends(stage.conn, ids)
    spent = followed.between(times[over.skip], times[over.jobs - 1])
    return rate(times, over.skip, over.jobs - 1), spent / over.measured
