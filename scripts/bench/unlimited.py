"""The row `unlimited`: what limits of queues and keys cost a queue that has none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from scripts.bench import steady
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

    Both run at the same time, each with a supervisor of its own: the difference is smaller than what a machine's mood is
    worth from one minute to the next.
    """
    other = stage.another("without")
    for statement in WHAT_LIMITS_NEED:
        other.conn.execute(statement)

    def measure() -> Pair:
        both = (stage, other)
        for each in both:
            each.clear()
            steady.add_noops(each.conn, jobs)
        with ThreadPoolExecutor(2) as threads:
            (ours, _), (bare, _) = threads.map(steady.head_rate, both, (jobs, jobs))
        return Pair(ours, bare, ours / bare)

    return measure
