"""Rows about many at once: many-supervisors, fanout."""

from __future__ import annotations

import itertools
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg

from scripts.bench import app, meter, steady
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.runner import Runner

SUPERVISORS: Final = 8
NAP: Final = 0.020


class _Leases(NamedTuple):
    all: float
    empty: float
    """Those that found nothing."""


def many_supervisors(stage: Stage, *, jobs: int, count: int = SUPERVISORS) -> Callable[[], Pair]:
    """No-op jobs that appear all at once, taken by eight supervisors with two slots each, and by one."""

    def measure() -> Pair:
        deadlocks = _deadlocks(stage.conn)
        one, leases_of_one = _drained(stage, jobs, 1)
        many, leases_of_many = _drained(stage, jobs, count)
        extra = {
            "deadlocks": float(_deadlocks(stage.conn) - deadlocks),
            "leases a second of all eight": leases_of_many.all,
            "of them empty": leases_of_many.empty,
            "leases a second of the one": leases_of_one.all,
            "of those empty": leases_of_one.empty,
        }
        return Pair(many, one, many / one, extra)

    return measure


def _drained(stage: Stage, jobs: int, count: int) -> tuple[float, _Leases]:
    """Jobs a second from the first tenth's end to the last."""
    stage.clear()
    with stage.waiting("--http", "127.0.0.1:0", count=count, procs=2) as runners:
        before = _leases(runners)
        ids = steady.add_noops(stage.conn, jobs)
        steady.await_none(stage.conn)
        after = _leases(runners)
    times = steady.ends(stage.conn, ids)
    took = times[-1] - times[0]
    leases = _Leases((after.all - before.all) / took, (after.empty - before.empty) / took)
    return steady.rate(times, len(times) // 10, len(times) - 1), leases


def _leases(runners: Sequence[Runner]) -> _Leases:
    """What these supervisors have counted so far."""
    total = empty = 0.0
    for runner in runners:
        url = next(event["url"] for event in runner.events() if event["event"] == "http")
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:  # noqa: S310 -- a supervisor on loopback
            values = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[:1] != "#")
        total += float(values["tasuki_lease_seconds_count"])
        empty += float(values["tasuki_empty_leases_total"])
    return _Leases(total, empty)


def _deadlocks(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def fanout(stage: Stage, *, seconds: float, slots: int = 64) -> Callable[[], Pair]:
    """Jobs that sleep for 20 ms in 64 slots of one supervisor, against what 64 sleepers do at best."""
    best = slots / NAP
    jobs = round(best * seconds)

    def measure() -> Pair:
        stage.clear()
        with stage.waiting(procs=slots) as (runner,):
            program, server = meter.program_cpu(stage.tag), meter.server_cpu(stage.conn)
            begin, supervisor = host.now(), host.own_cpu_seconds(runner.pid)
            ids = list(app.app.enqueue_many(itertools.repeat(app.nap.job(seconds=NAP), jobs), stage.conn))
            steady.await_last(stage.conn, ids)
            took, supervisor = host.now() - begin, host.own_cpu_seconds(runner.pid) - supervisor
            program, server = meter.program_cpu(stage.tag) - program, meter.server_cpu(stage.conn) - server
        times = steady.ends(stage.conn, ids)
        over = steady.window(len(times))
        ours = steady.rate(times, over.skip, over.jobs - 1)
        extra = {
            "supervisor's share of a core": supervisor / took,
            "all of the program's, share of a core": program / took,
            "the server's": server / took,
        }
        return Pair(ours, best, ours / best, extra)

    return measure
