"""Fifty schedules that tick each second, four supervisors that are killed at random: each tick fires exactly once."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts import show_ticks_app
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait

SUPERVISORS: Final = 4
SECONDS: Final = 120.0
LIVES: Final = (2.0, 6.0)
"""Seconds from one SIGKILL to the next."""
PATIENCE: Final = 120.0
QUERY: Final = Path(__file__).with_name("show_ticks.sql")

Promise = Callable[[str, str, object, bool], None]
Conn = psycopg.Connection[Any]


def ticks(promise: Promise, *, seconds: float = SECONDS) -> None:
    """Run them; tell `promise` what was wanted, what was seen, and whether it was kept."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    tag = host.new_tag()
    try:
        with (
            scratch_server() as server,
            psycopg.connect(server.dsn, autocommit=True) as conn,
            contextlib.ExitStack() as stack,
        ):
            fleet = Fleet(server.dsn, folder, tag, stack)
            began = host.now()
            fleet.live(until=began + seconds, conn=conn)
            conn.execute("UPDATE tasuki.schedule SET paused_at = now()")
            is_done = wait(lambda: _count(conn, "tasuki.job") == 0, PATIENCE, fleet.refill)
            promise("all jobs of all ticks are done", "yes", "yes" if is_done else "no", is_done)
            _judge(promise, conn, fleet, host.now() - began)
    finally:
        shutil.rmtree(folder)
    left = host.tagged(tag)
    promise("processes left behind", "0", len(left), not left)


class Fleet:
    """Four supervisors; one that was killed is replaced at once."""

    def __init__(self, dsn: str, folder: Path, tag: str, stack: contextlib.ExitStack) -> None:
        self.kills = 0
        self._dsn = dsn
        self._folder = folder
        self._tag = tag
        self._stack = stack
        self._started = 0
        self._runners: list[Runner] = []
        self.refill()

    def refill(self) -> None:
        """Replace what has ended."""
        self._runners = [runner for runner in self._runners if runner.is_alive]
        while len(self._runners) < SUPERVISORS:
            self._started += 1
            runner = Runner(
                *("--procs", "1", "--lease", "5s"),
                app="scripts.show_ticks_app:app",
                dsn=self._dsn,
                log=self._folder / f"supervisor-{self._started}",
                tag=self._tag,
            )
            self._stack.enter_context(contextlib.closing(runner))
            self._runners.append(runner)

    def live(self, *, until: float, conn: Conn) -> None:
        """Kill one after the other, at random, once the schedules tick."""
        wait(lambda: _count(conn, "tasuki.schedule_tick") > 0, PATIENCE)
        while host.now() < until:
            next_kill = host.now() + random.uniform(*LIVES)
            wait(lambda at=next_kill: host.now() >= at, PATIENCE)  # type: ignore[misc]  # a lambda's default has no type
            random.choice(self._runners).signal(signal.SIGKILL)
            self.kills += 1
            self.refill()


def _judge(promise: Promise, conn: Conn, fleet: Fleet, took: float) -> None:
    query = QUERY.read_bytes()
    print(query.decode())
    rows = conn.execute(query).fetchall()
    print(f"{'verdict':<10} {'generators':>10} {'leaves':>7} {'ticks':>7}")
    for verdict, generators, leaves, count in rows:
        print(f"{verdict:<10} {generators:>10} {leaves:>7} {count:>7}")
    print()
    good = sum(row[3] for row in rows if row[:3] == ("fired", 1, show_ticks_app.LEAVES))
    total = sum(row[3] for row in rows)
    promise("supervisors killed", "reported", f"{fleet.kills} in {took:.0f} s", True)
    promise("schedules that ticked", str(show_ticks_app.SCHEDULES), names := _schedules(conn), names == 50)
    promise("ticks that fired once, with each of their jobs once", str(total), good, good == total > 0)
    late = conn.execute(
        """SELECT percentile_cont(array[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM decided_at - tick))
             FROM tasuki.schedule_tick"""
    ).fetchone()
    assert late is not None
    shown = ", ".join(f"{seconds:.2f} s" for seconds in late[0])
    promise("from a tick's time to its firing: median, 99 %, longest", "reported", shown, True)
    again = conn.execute("SELECT count(*) FROM tasuki.attempt WHERE kind = 'rescue'").fetchone()
    assert again is not None
    promise("attempts cut off by a kill, done again", "reported", again[0], True)


def _schedules(conn: Conn) -> int:
    row = conn.execute("SELECT count(DISTINCT schedule) FROM tasuki.schedule_tick").fetchone()
    return 0 if row is None else int(row[0])


def _count(conn: Conn, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()  # noqa: S608  our own words
    return 0 if row is None else int(row[0])
