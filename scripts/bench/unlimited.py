"""The row `unlimited`: what limits of queues and keys cost a queue that has none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from scripts.bench import meter, steady
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage

WHAT_LIMITS_NEED: Final = (
    "DROP TRIGGER job_free_key_deleted ON tasuki.job",
    "DROP TRIGGER job_free_key_pending ON tasuki.job",
    "DROP TRIGGER job_pass_key_on_deleted ON tasuki.job",
    "DROP TRIGGER job_pass_key_on_put_off ON tasuki.job",
    "DROP INDEX tasuki.job_counted",
    "DROP INDEX tasuki.job_held_key",
    "ALTER TABLE tasuki.job DROP CONSTRAINT job_keys",
)
"""Whatever of them a row of the live table meets on its way."""


def unlimited(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """No-op jobs of a queue without limits, in a database as it is and in one where nothing is there for limits.

    The database that comes second finds a warmer machine, so each of them does so in turn.
    """
    other = stage.another("without")
    for statement in WHAT_LIMITS_NEED:
        other.conn.execute(statement)
    orders = itertools.cycle([(stage, other), (other, stage)])

    def measure() -> Pair:
        measured = {each: _measured(each, jobs) for each in next(orders)}
        (ours, ours_cpu), (bare, bare_cpu) = measured[stage], measured[other]
        extra = {"PostgreSQL's CPU time for a job, µs": ours_cpu, "without them, µs": bare_cpu}
        return Pair(ours, bare, ours / bare, extra)

    return measure


def _measured(stage: Stage, jobs: int) -> tuple[float, float]:
    """The steady rate, and microseconds of the server's CPU time for a job."""
    stage.clear()
    steady.add_noops(stage.conn, jobs)
    begin = meter.server_cpu(stage.conn)
    rate = steady.head_rate(stage, jobs)
    return rate, (meter.server_cpu(stage.conn) - begin) / jobs * 1e6
