"""The row about an old transaction: while one with a snapshot is open, nothing that was deleted since can be cleaned up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from scripts.bench import meter, statements, steady
from scripts.bench.figures import CPU_RATIO, Pair
from scripts.bench.stage import Stage

LEASE: Final = "-- Take due jobs"


def old_transaction(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """No-op jobs before a snapshot is taken, and after so many more; one supervisor that never stops in between."""
    measured = jobs // 6

    def measure() -> Pair:
        stage.clear()
        ids = steady.add_noops(stage.conn, jobs + 3 * measured)
        stage.conn.execute("CHECKPOINT")
        before, after = slice(measured, 2 * measured), slice(jobs + 2 * measured, jobs + 3 * measured - measured // 10)
        with statements.logged(stage.conn, stage.server_log) as log, psycopg.connect(stage.dsn) as holder:
            runner = stage.supervisor()
            followed = meter.Followed(runner.pid, stage.procs, stage.conn)
            try:
                steady.await_last(stage.conn, ids[: before.start])
                marks = [log.mark()]
                steady.await_last(stage.conn, ids[: before.stop])
                marks.append(log.mark())
                _take_snapshot(holder)
                steady.await_last(stage.conn, ids[: after.start])
                marks.append(log.mark())
                steady.await_last(stage.conn, ids[: after.stop])
                marks.append(log.mark())
                stage.stop(runner)
            finally:
                runner.close()
                followed.close()
            leases = [
                statements.percentile(log.statements(marks[i], marks[i + 1]), LEASE, share)
                for i in (0, 2)
                for share in (0.5, 0.99)
            ]
        times = steady.ends(stage.conn, ids)
        parts = (before, after)
        rates = [steady.rate(times, part.start, part.stop - 1) for part in parts]
        spent = [followed.between(times[part.start], times[part.stop - 1]) / (part.stop - part.start) for part in parts]
        extra = {
            CPU_RATIO: spent[0] / spent[1],
            "lease before, median ms": leases[0],
            "lease after, median ms": leases[2],
            "lease before, 99th percentile ms": leases[1],
            "lease after, 99th percentile ms": leases[3],
            "99th percentile, after to before": leases[3] / leases[1],
        }
        return Pair(rates[1], rates[0], rates[1] / rates[0], extra)

    return measure


def _take_snapshot(holder: psycopg.Connection[Any]) -> None:
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("SELECT count(*) FROM tasuki.migration")
