"""Cores, and what children share: native threads with and without a budget, a preloaded table, the cost of a clean child."""

from __future__ import annotations

import contextlib
import contextvars
import shutil
import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts import show_cores_app, show_preload_app
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait
from tasuki_mp.child.clean import Baseline
from tasuki_mp.child.threads import THREAD_VARIABLES

Promise = Callable[[str, str, object, bool], None]

PROCS: Final = 2
MATRICES: Final = 12
ROUNDS: Final = 3
CHILDREN: Final = 8
JOBS_EACH: Final = 1000
LOOK_UPS: Final = 20
CLEAN_WITHIN_US: Final = 10.0
PROBES_A_SECOND: Final = 10


# ── threads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def threads(promise: Promise) -> None:
    """The same matrices, with as many threads in each process as there are cores, and with a budget."""
    ways: list[tuple[str, int, dict[str, str]]] = [
        ("without a budget: 2 jobs at once, 2 threads each", 1, dict.fromkeys(THREAD_VARIABLES, str(PROCS))),
        ("with it: 2 jobs at once, 1 thread each", 1, {}),
        ("cpus=2: one job at a time, 2 threads", 2, {}),
    ]
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in ways}
    with _database() as (folder, dsn, conn):
        for _ in range(ROUNDS):
            for name, cpus, env in ways:
                seen[name].append(_multiply(conn, dsn, folder, cpus=cpus, env=env))
    best = min(statistics.median(wall for wall, _ in each) for each in seen.values())
    for name, each in seen.items():
        wall, cpu = (statistics.median(figures) for figures in zip(*each, strict=True))
        shown = f"{wall:.1f} s, {cpu:.1f} s of CPU time, {wall / best:.2f} times the best"
        promise(f"{MATRICES} jobs, {name}", "", shown, True)


def _multiply(
    conn: psycopg.Connection[Any], dsn: str, folder: Path, *, cpus: int, env: dict[str, str]
) -> tuple[float, float]:
    """Seconds from the first start to the last end of the jobs, and CPU time in all."""
    conn.execute("TRUNCATE tasuki.job, tasuki.job_archive, tasuki.attempt")
    job = show_cores_app.multiply.job(20).limits(cpus=cpus)
    show_cores_app.app.enqueue_many([job] * MATRICES, conn)
    runner = Runner(
        *("--procs", str(PROCS), "--drain"),
        app="scripts.show_cores_app:app",
        dsn=dsn,
        log=folder / "log",
        tag=host.new_tag(),
        env=env,
    )
    with contextlib.closing(runner):
        assert runner.wait(600) == 0
    row = conn.execute(
        """SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8, sum((result ->> 'cpu')::float8)
             FROM tasuki.job_archive WHERE status = 'completed' AND (result ->> 'cpus')::int = %s""",
        [cpus],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


# ── preload ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def preload(promise: Promise) -> None:
    """Memory of children that share a table, at their start and when each has looked things up in it a thousand times."""
    ways = [
        ("plain objects, imported in each child", ("--no-preload",), "objects"),
        ("plain objects, preloaded", (), "objects"),
        ("one array, preloaded", (), "array"),
    ]
    for name, options, kind in ways:
        with _database() as (folder, dsn, conn):
            runner = Runner(
                *("--procs", str(CHILDREN), *options),
                app="scripts.show_preload_app:app",
                dsn=dsn,
                log=folder / "log",
                tag=host.new_tag(),
                level="debug",
                env={show_preload_app.KIND: kind},
            )
            with contextlib.closing(runner):
                wait(partial(_are_up, runner), 120, every=0.1)
                promise(f"{name}: {CHILDREN} children at the start", "", _memory(runner), True)
                count = CHILDREN * JOBS_EACH
                show_preload_app.app.enqueue_many([show_preload_app.look_up.job(LOOK_UPS)] * count, conn)
                wait(partial(_is_finished, conn, count), 300, every=0.2)
                row = conn.execute(
                    """SELECT min(jobs), max(jobs) FROM
                         (SELECT count(*) AS jobs FROM tasuki.job_archive GROUP BY usage ->> 'pid') AS child"""
                ).fetchone()
                assert row is not None
                promise(f"{name}: after {row[0]} to {row[1]} jobs each", "", _memory(runner), _finished(conn) == count)


def _are_up(runner: Runner) -> bool:
    return len(_children(runner)) >= CHILDREN


def _is_finished(conn: psycopg.Connection[Any], count: int) -> bool:
    return _finished(conn) >= count


def _children(runner: Runner) -> list[int]:
    """Children that have said hello."""
    return [event["pid"] for event in runner.events() if event["event"] == "child ready"]


def _finished(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM tasuki.job_archive WHERE status = 'completed'").fetchone()
    assert row is not None
    return int(row[0])


def _memory(runner: Runner) -> str:
    sizes = [_rollup(pid) for pid in _children(runner)]
    private = [size["Private_Clean"] + size["Private_Dirty"] for size in sizes]
    shown = f"private {statistics.median(private):.0f} MB each (median), {sum(private):.0f} in all"
    return f"{shown}; resident {statistics.median(size['Rss'] for size in sizes):.0f} MB each"


def _rollup(pid: int) -> dict[str, float]:
    """Megabytes by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


# ── clean ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def clean(promise: Promise) -> None:
    """What it costs to leave each job the process that the first one found."""
    baseline = Baseline()
    count = 20_000
    nothing = [].append  # something to call
    restore = min(timeit.repeat(baseline.restore, number=count, repeat=9)) / count * 1e6
    context = timeit.repeat(lambda: contextvars.copy_context().run(nothing, 1), number=count, repeat=9)
    call = timeit.repeat(lambda: nothing(1), number=count, repeat=9)
    probe = min(timeit.repeat(baseline.probe, number=500, repeat=9)) / 500 * 1e6
    each = restore + (min(context) - min(call)) / count * 1e6
    promise("what is exact, µs a job", f"≤ {CLEAN_WITHIN_US:g}", f"{each:.1f}", each <= CLEAN_WITHIN_US)
    rate = probe * PROBES_A_SECOND
    shown = f"{probe:.0f} µs, at most {PROBES_A_SECOND} a second or after 10 ms of work: {rate:.0f} µs a second"
    promise("what may lag", "≤ 0.1 % of the time", shown, probe / 10_000 <= 0.01 and rate <= 1000)


# ── plumbing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _database() -> Iterator[tuple[Path, str, psycopg.Connection[Any]]]:
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    try:
        with scratch_server() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
            yield folder, server.dsn, conn
    finally:
        shutil.rmtree(folder)
