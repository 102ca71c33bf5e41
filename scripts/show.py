"""`python -m scripts.show WHAT`: the promises about dying processes, kept before your eyes and measured.

    python -m scripts.show crashes   200 jobs, 5 of which kill their own process with SIGSEGV
    python -m scripts.show orphans   SIGKILL of a supervisor whose children burn CPU in C
    python -m scripts.show batch     jobs of one batch that end on many supervisors (--jobs N, --supervisors N)
    python -m scripts.show limits    a queue with limits under eight supervisors
    python -m scripts.show misbehaving   twenty handlers that nobody should write, beside innocent jobs
    python -m scripts.show long      a job of ten minutes of CPU time (--cpu SECONDS) that is killed in five ways
    python -m scripts.show threads   matrices multiplied in two processes, with a budget of threads and without
    python -m scripts.show preload   eight children that share a table of 200 MB
    python -m scripts.show clean     what it costs to clean up a child after each job
    python -m scripts.show sampler   what it costs to watch eight jobs' memory and CPU time
    python -m scripts.show ticks     fifty schedules at each second, four supervisors killed at random (--seconds N)

Prints what was measured; exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import psycopg

from scripts import show_app as jobs
from scripts.harness import host, journal
from scripts.harness.runner import Runner
from scripts.harness.server import Server, scratch_server
from scripts.harness.waiting import wait
from scripts.show_batch import JOBS, SUPERVISORS, batch
from scripts.show_cores import clean, preload, threads
from scripts.show_limits import limits
from scripts.show_long import Long
from scripts.show_misbehaving import misbehaving
from scripts.show_sampler import sampler
from scripts.show_ticks import SECONDS, ticks

CHOICES = [
    "batch",
    "clean",
    "crashes",
    "limits",
    "long",
    "misbehaving",
    "orphans",
    "preload",
    "sampler",
    "threads",
    "ticks",
]
LEASE = 5.0
PILLS = 5
STEPS = 195
NEW_CHILD_WITHIN_MS = 100.0
GONE_WITHIN_MS = 100.0
AGAIN_WITHIN = 2.0


class Board:
    """Collects what was promised and what was seen."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []
        self._is_good = True

    def promise(self, what: str, wanted: str, seen: object, *, is_kept: bool) -> None:
        self._rows.append((what, wanted, str(seen), "ok" if is_kept else "BROKEN"))
        self._is_good = self._is_good and is_kept

    def show(self) -> int:
        """Print it; the exit code."""
        widths = [max(len(row[column]) for row in self._rows) for column in range(4)]
        for row in self._rows:
            print("  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
        return 0 if self._is_good else 1


class Stage:
    """A database, a journal, and supervisors that are gone at the end."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.server = server
        self.dsn = server.dsn
        self.tag = host.new_tag()
        self.folder = folder
        self.journal = folder / "journal"
        self.conn = psycopg.connect(server.dsn, autocommit=True)
        self._runners: list[Runner] = []

    def start(
        self, *options: str, level: str = "info", prefix: tuple[str, ...] = (), app: str = "scripts.show_app:app"
    ) -> Runner:
        """A supervisor with two slots."""
        name = f"supervisor-{len(self._runners) + 1}"
        runner = Runner(
            *("--procs", "2", "--lease", f"{LEASE:g}s", *options),
            app=app,
            dsn=self.dsn,
            log=self.folder / f"{name}.log",
            tag=self.tag,
            level=level,
            env=journal.environment(self.journal, name),
            prefix=prefix,
        )
        self._runners.append(runner)
        return runner

    def executions(self, *, attempt: int) -> list[journal.Execution]:
        return [each for each in journal.read(self.journal) if each.attempt == attempt]

    def close(self) -> None:
        self.conn.close()
        for runner in self._runners:
            runner.close()


@contextmanager
def staged() -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    try:
        with scratch_server() as server, contextlib.closing(Stage(folder, server)) as stage:
            yield stage
    finally:
        shutil.rmtree(folder)


# ── crashes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def crashes(board: Board) -> None:
    """200 jobs of which 5 kill their process: nobody else is harmed."""
    with staged() as stage:
        made = [jobs.pill.job() if n % 40 == 20 else jobs.step.job(ms=40) for n in range(STEPS + PILLS)]
        jobs.app.enqueue_many(made, stage.conn)
        runner = stage.start(level="debug")
        wait(lambda: _count(stage.conn, "true") == len(made), 120)

        def new_children() -> list[float]:
            died = stage.conn.execute("SELECT id FROM tasuki.job_archive WHERE handler = 'pill'").fetchall()
            pills = {row[0] for row in died}
            return _gaps(runner, {each.pid: each.began for each in journal.read(stage.journal) if each.job in pills})

        wait(lambda: len(new_children()) == 3 * PILLS, 5)  # the last one's too
        runner.signal(signal.SIGTERM)
        code = runner.wait(60)
        board.promise("the supervisor never restarts", "exit code 0", code, is_kept=code == 0)
        steps = "handler = 'step' AND status = 'completed' AND attempt = 1 AND crashes = 0"
        done = _count(stage.conn, steps)
        board.promise("innocent jobs completed, attempt 1", str(STEPS), done, is_kept=done == STEPS)
        runs = Counter(each.job for each in journal.read(stage.journal))
        pills = {row[0] for row in stage.conn.execute("SELECT id FROM tasuki.job_archive WHERE handler = 'pill'")}
        twice = sum(1 for job, count in runs.items() if job not in pills and count != 1)
        board.promise("of them executed more or less than once", "0", twice, is_kept=twice == 0)
        poisoned = _count(
            stage.conn,
            "handler = 'pill' AND status = 'failed' AND crashes = 3"
            " AND error ->> 'kind' = 'poison' AND error ->> 'signal' = 'SIGSEGV'",
        )
        board.promise("pills failed as poison by SIGSEGV", str(PILLS), poisoned, is_kept=poisoned == PILLS)
        deaths = sum(count for job, count in runs.items() if job in pills)
        board.promise("executions of the pills", str(3 * PILLS), deaths, is_kept=deaths == 3 * PILLS)
        gaps = new_children()
        shown = (
            f"median {statistics.median(gaps):.0f} ms, longest {max(gaps):.0f} ms of {len(gaps)}" if gaps else "none"
        )
        is_kept = len(gaps) == deaths and max(gaps) <= NEW_CHILD_WITHIN_MS
        board.promise("from a death to a new child", f"≤ {NEW_CHILD_WITHIN_MS:.0f} ms", shown, is_kept=is_kept)
        left = host.tagged(stage.tag)
        board.promise("processes left behind", "0", len(left), is_kept=not left)


def _gaps(runner: Runner, died: dict[int, float]) -> list[float]:
    """Milliseconds from the instant before each pill's last act until its slot had a child that takes jobs."""
    slots: dict[int, int] = {}
    ready: list[tuple[int, float]] = []
    for event in runner.events():
        if event["event"] == "child ready":
            slots[event["pid"]] = event["slot"]
            ready.append((event["slot"], datetime.fromisoformat(event["time"]).timestamp()))
    gaps = []
    for pid, at in died.items():
        after = [when for slot, when in ready if slot == slots.get(pid) and when > at]
        if after:
            gaps.append((min(after) - at) * 1000)
    return gaps


def _count(conn: psycopg.Connection[tuple[object, ...]], condition: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM tasuki.job_archive WHERE {condition}".encode()).fetchone()  # noqa: S608 -- our own words
    assert row is not None
    return int(str(row[0]))


# ── orphans ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def orphans(board: Board) -> None:
    """A supervisor is killed while its children hold the interpreter's lock in C: nothing survives, nothing is lost."""
    with staged() as stage:
        jobs.app.enqueue_many([jobs.hog.job(), jobs.hog.job()], stage.conn)
        first = stage.start()
        _all_run(stage, attempt=1)
        _kill_and_watch(board, stage, first, "same host, first kill")
        began = host.now()
        second = stage.start()
        _all_run(stage, attempt=2)
        took = host.now() - began
        board.promise(
            "a supervisor on the same host runs the jobs again",
            f"≤ {AGAIN_WITHIN:g} s",
            f"{took:.2f} s",
            is_kept=took <= AGAIN_WITHIN,
        )
        _kill_and_watch(board, stage, second, "same host, second kill")
        expires = stage.conn.execute(
            "SELECT extract(epoch FROM max(lease_expires_at) - clock_timestamp())::float8 FROM tasuki.job"
        ).fetchone()
        assert expires is not None
        began = host.now()
        stage.start(prefix=_elsewhere())
        _all_run(stage, attempt=3)
        took = host.now() - began
        wanted = f"{expires[0]:.1f} to {2 * LEASE + AGAIN_WITHIN + expires[0]:.1f} s"
        is_kept = expires[0] <= took <= 2 * LEASE + AGAIN_WITHIN + expires[0]
        board.promise("one in another pid namespace, after the lease", wanted, f"{took:.2f} s", is_kept=is_kept)
        rows = stage.conn.execute("SELECT attempt, crashes FROM tasuki.job").fetchall()
        board.promise("attempts counted, no crash charged", "3, 0 each", rows, is_kept=rows == [(3, 0), (3, 0)])
    left = host.tagged(stage.tag)
    board.promise("processes left behind at the end", "0", len(left), is_kept=not left)


def _all_run(stage: Stage, *, attempt: int) -> None:
    if not wait(lambda: len(stage.executions(attempt=attempt)) == 2, 60, every=0.005):
        raise SystemExit(f"attempt {attempt} of the jobs did not begin within a minute")


def _kill_and_watch(board: Board, stage: Stage, runner: Runner, which: str) -> None:
    """SIGKILL the supervisor and wait for the end of everything that it had started."""
    watched = {os.pidfd_open(each.pid): each.pid for each in host.tagged(stage.tag)}
    poll = select.poll()
    for pidfd in watched:
        poll.register(pidfd, select.POLLIN)
    began = host.now()
    runner.signal(signal.SIGKILL)
    count = len(watched)
    took = 0.0
    while watched and took < 10:
        for pidfd, _ in poll.poll(1000):
            poll.unregister(pidfd)
            os.close(pidfd)
            del watched[pidfd]
        took = host.now() - began
    is_kept = not watched and took * 1000 <= GONE_WITHIN_MS
    what = f"{which}: all {count} processes gone"
    board.promise(what, f"≤ {GONE_WITHIN_MS:.0f} ms", f"{took * 1000:.1f} ms", is_kept=is_kept)


def _elsewhere() -> tuple[str, ...]:
    """A command that runs another in a pid namespace of its own, where nothing proves who is dead out here."""
    if shutil.which("unshare") is None:
        raise SystemExit("unshare is not installed: apt-get install util-linux")
    as_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ("unshare", *as_user, "--pid", "--fork", "--mount-proc", "--kill-child")


def _said_by(show: Callable[[Callable[[str, str, object, bool], None]], None]) -> Callable[[Board], None]:
    """A show that tells a function what it promised, on the board."""

    def on(board: Board) -> None:
        show(lambda what, wanted, seen, is_kept: board.promise(what, wanted, seen, is_kept=is_kept))

    return on


# ── long ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def long(board: Board, *, cpu: float) -> None:
    """One job is killed again and again, and loses next to nothing."""
    with staged() as stage:
        Long(board, stage, cpu=cpu).run()
    left = host.tagged(stage.tag)
    board.promise("processes left behind", "0", len(left), is_kept=not left)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.show", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=CHOICES)
    parser.add_argument("--cpu", type=float, default=600.0, metavar="SECONDS", help="CPU time of the long job  [600]")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long the schedules tick  [{SECONDS:g}]")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"of the batch, and as many without one  [{JOBS}]")
    parser.add_argument("--supervisors", type=int, default=SUPERVISORS, help=f"who run them  [{SUPERVISORS}]")
    given = parser.parse_args()
    shows: dict[str, Callable[[Board], None]] = {
        "crashes": crashes,
        "orphans": orphans,
        "long": partial(long, cpu=given.cpu),
        "threads": _said_by(threads),
        "preload": _said_by(preload),
        "clean": _said_by(clean),
        "batch": _said_by(partial(batch, jobs=given.jobs, supervisors=given.supervisors)),
        "limits": _said_by(limits),
        "sampler": _said_by(sampler),
        "misbehaving": _said_by(misbehaving),
        "ticks": _said_by(partial(ticks, seconds=given.seconds)),
    }
    board = Board()
    shows[given.what](board)
    return board.show()


if __name__ == "__main__":
    sys.exit(main())
