"""Rows about what waits in the tables: backlog, unknown.

Ours and the reference are two databases on one server, each filled once: what a run takes from them hardly changes the
large one, and the small one is filled up again before each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from scripts.bench import meter, statements, steady
from scripts.bench.figures import CPU_RATIO, Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.waiting import wait

SMALL: Final = 50_000
UNKNOWN: Final = 1_000_000
LEASE: Final = "-- Take due jobs"


def backlog(stage: Stage, *, jobs: int, small: int = SMALL) -> Callable[[], Pair]:
    """No-op jobs out of so many due ones, with as many future ones, and as many in the archive of the same day."""
    steady.fill_archive(stage.conn, jobs)
    steady.fill_due(stage.conn, jobs)
    steady.fill_due(stage.conn, jobs, after=86_400)
    steady.settle(stage.conn)
    other = stage.another("small")

    def measure() -> Pair:
        _fill_up(other.conn, small)
        _fill_up(stage.conn, small)
        few, spent = steady.head_rate(other, small)
        many, spent_of_many = steady.head_rate(stage, small)
        extra = {"due jobs": float(jobs), CPU_RATIO: spent / spent_of_many}
        return Pair(many, few, many / few, extra)

    return measure


def unknown(
    stage: Stage, *, jobs: int, seconds: float, behind: int = UNKNOWN, small: int = SMALL
) -> Callable[[], Pair]:
    """No-op jobs behind so many due ones of a handler that nobody has.

    Those have just come, so for ten minutes they are not held, and each full scan walks over them: the worst that they
    can do. Idle is measured with them at the head and nothing else due, the server's time included.
    """
    steady.fill_due(stage.conn, behind, handler="nobody", after=-7200)
    steady.settle(stage.conn)
    other = stage.another("plain")

    def measure() -> Pair:
        _fill_up(other.conn, small)
        _fill_up(stage.conn, small)
        without, spent = steady.head_rate(other, jobs)
        with statements.logged(stage.conn, stage.server_log) as log:
            behind_them, spent_behind = steady.head_rate(stage, jobs)
            slowest = max(each.ms for each in log.statements() if each.text.startswith(LEASE))
        stage.conn.execute("DELETE FROM tasuki.job WHERE handler = 'noop'")
        share, server = _idle(stage, seconds)
        extra = {
            CPU_RATIO: spent / spent_behind,
            "idle, share of a core": share,
            "idle, share of a core with the server's": share + server,
            "longest lease, ms": slowest,
        }
        return Pair(behind_them, without, behind_them / without, extra)

    return measure


def _fill_up(conn: psycopg.Connection[Any], jobs: int) -> None:
    """So many no-op jobs are due, those added as a producer adds them."""
    if lacking := jobs - len(steady.head(conn, jobs)):
        steady.add_noops(conn, lacking)
    conn.execute("CHECKPOINT")


def _idle(stage: Stage, seconds: float) -> tuple[float, float]:
    """The share of a core that an idle supervisor takes, and what the server takes meanwhile."""
    with stage.waiting():
        wait(lambda: False, 3)  # what only the start costs
        begin = host.now()
        program, server = meter.program_cpu(stage.tag), meter.server_cpu(stage.conn)
        wait(lambda: False, seconds, every=1)
        took = host.now() - begin
        return (meter.program_cpu(stage.tag) - program) / took, (meter.server_cpu(stage.conn) - server) / took
