"""Twenty handlers that nobody should write, one after the other beside innocent jobs: what became of whom."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts import show_misbehaving_app as jobs
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait

PROCS: Final = 2
INNOCENT_A_CULPRIT: Final = 15
PATIENCE: Final = 60.0
WHOLE_WITHIN: Final = 1.0
"""Seconds from the culprit's end to a full set of children; half of it is what a busy machine adds."""

PAIRS: Final = 3
INNOCENT_A_PILL: Final = 200
PILLS: Final = 2
LEAST_SHARE: Final = 0.9
"""What innocent jobs keep of their throughput while others crash again and again."""

FRESH: Final = "new child"
KEPT: Final = "child kept"
CULPRITS: Final = (
    (jobs.hang_in_python, "failed timeout", FRESH),
    (jobs.hang_in_c, "failed timeout", FRESH),
    (jobs.ignore_sigterm, "failed timeout", FRESH),
    (jobs.stop_itself, "failed timeout", FRESH),
    (jobs.fork_bomb, "failed timeout", FRESH),
    (jobs.daemonise, "completed", FRESH),
    (jobs.leave_a_process, "completed", FRESH),
    (jobs.leak_memory, "failed memory", FRESH),
    (jobs.close_all, "failed crash", FRESH),
    (jobs.endless_output, "failed timeout", FRESH),
    (jobs.dirty_everything, "completed", KEPT),
    (jobs.change_signals, "completed", KEPT),
    (jobs.segfault, "failed crash", FRESH),
    (jobs.exit_at_once, "failed crash", FRESH),
    (jobs.system_exit, "failed error", KEPT),
    (jobs.return_nonsense, "failed bad_result", KEPT),
    (jobs.raise_the_unspeakable, "failed error", KEPT),
    (jobs.leak_threads, "completed", FRESH),
    (jobs.leak_descriptors, "completed", FRESH),
    (jobs.eat_itself, "failed crash", FRESH),
)
"""Each with what should become of its job, and of its child."""

Promise = Callable[[str, str, object, bool], None]


def misbehaving(promise: Promise) -> None:
    """Run them all on two slots; tell `promise` what was wanted, what was seen, and whether it was kept."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    tag = host.new_tag()
    try:
        with scratch_server() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
            runner = Runner(
                *("--procs", str(PROCS)),
                app="scripts.show_misbehaving_app:app",
                dsn=server.dsn,
                log=folder / "log",
                tag=tag,
                level="debug",
            )
            with contextlib.closing(runner):
                wait(lambda: len(_children(runner)) == PROCS, PATIENCE)
                needed = _needed(runner)
                for culprit, wanted, child in CULPRITS:
                    _one(conn, runner, promise, culprit, wanted, child)
                _innocents(conn, promise)
                _beside_pills(conn, promise)

                def left() -> list[host.Process]:
                    spared = needed | _children(runner)
                    return [process for process in host.tagged(tag) if process.pid not in spared]

                wait(lambda: not left(), WHOLE_WITHIN)  # a child that was replaced may be on its way out
                strangers = left()
                promise("processes that outlived their job", "0", len(strangers), not strangers)
            wait(lambda: not host.tagged(tag), PATIENCE)
            at_end = host.tagged(tag)
            promise("processes left at the end", "0", len(at_end), not at_end)
    finally:
        shutil.rmtree(folder)


def _one(
    conn: psycopg.Connection[Any], runner: Runner, promise: Promise, culprit: Any, wanted: str, child: str
) -> None:
    """One culprit between innocent jobs that keep the other slot busy."""
    jobs.app.enqueue_many((jobs.innocent.job(n) for n in range(INNOCENT_A_CULPRIT)), conn)
    job_id = jobs.app.enqueue(culprit.job().priority(0), conn).id

    def end() -> str | None:
        row = conn.execute(
            "SELECT concat_ws(' ', status, error ->> 'kind') FROM tasuki.job_archive WHERE id = %s", [job_id]
        ).fetchone()
        return None if row is None else str(row[0])

    both = f"{wanted}; {child}"
    wait(lambda: end() is not None, PATIENCE)
    seen = end()
    if seen is None:
        promise(culprit.name, both, "not ended", False)
        return
    wait(lambda: _whole_after(runner, job_id, child) is not None, PATIENCE)
    whole = _whole_after(runner, job_id, child)
    after = "no new child" if whole is None else KEPT if whole == 0 else f"{FRESH} after {whole * 1000:.0f} ms"
    is_kept = seen == wanted and whole is not None and whole <= WHOLE_WITHIN and after.startswith(child)
    promise(culprit.name, both, f"{seen}; {after}", is_kept)


def _whole_after(runner: Runner, job_id: int, child: str) -> float | None:
    """Seconds from the job's end to a fresh child in its slot: 0 if it keeps its own, None while there is none."""
    ended, slot, is_left = None, None, child == FRESH
    for event in runner.events():
        name = event.get("event")
        if name == "job dispatched" and event.get("job") == job_id:
            slot = event["slot"]
        elif event.get("job") == job_id and name in ("job failed", "job completed"):
            ended = _time(event)
        elif slot is not None and event.get("slot") == slot:
            if name in ("child died", "child is replaced", "child is killed"):
                is_left = True
            elif name == "child ready" and ended is not None:
                return _time(event) - ended
            elif name == "job dispatched" and ended is not None and not is_left:
                return 0.0
    return 0.0 if ended is not None and not is_left else None


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _innocents(conn: psycopg.Connection[Any], promise: Promise) -> None:
    wanted = INNOCENT_A_CULPRIT * len(CULPRITS)

    def ended() -> tuple[int, int]:
        row = conn.execute(
            """SELECT count(*), count(*) FILTER (WHERE status = 'completed' AND attempt = 1 AND crashes = 0)
                 FROM tasuki.job_archive WHERE handler = 'innocent'"""
        ).fetchone()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    wait(lambda: ended()[0] == wanted, PATIENCE)
    done = ended()[1]
    promise("innocent neighbours completed at their first attempt", str(wanted), done, done == wanted)


def _beside_pills(conn: psycopg.Connection[Any], promise: Promise) -> None:
    """The same innocent jobs with pills and without, in turns."""
    shares = sorted(_throughput(conn, pills=PILLS) / _throughput(conn, pills=0) for _ in range(PAIRS))
    median = shares[PAIRS // 2]
    seen = f"{median:.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
    name = f"throughput left beside a poison pill for every {INNOCENT_A_PILL} jobs"
    promise(name, f"{LEAST_SHARE:.2f}", seen, median >= LEAST_SHARE)
    row = conn.execute("SELECT count(*), min(crashes), max(crashes) FROM tasuki.job_archive WHERE handler = 'pill'")
    promise("pills, and how often each has killed its process", "3 times", *_pills(row.fetchone()))


def _pills(row: tuple[Any, ...] | None) -> tuple[str, bool]:
    count, least, most = row or (0, 0, 0)
    return f"{count} pills, {least} to {most} times", (count, least, most) == (PAIRS * PILLS, 3, 3)


def _throughput(conn: psycopg.Connection[Any], *, pills: int) -> float:
    """Innocent jobs a second, from the start of the first to the end of the last."""
    culprits = [jobs.app.enqueue(jobs.pill.job(), conn).id for _ in range(pills)]
    ids = list(jobs.app.enqueue_many((jobs.innocent.job(n) for n in range(PILLS * INNOCENT_A_PILL)), conn))

    def seconds() -> float | None:
        row = conn.execute(
            """SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8,
                      count(*) FILTER (WHERE handler = 'innocent')
                 FROM tasuki.job_archive WHERE id = any(%s) AND status = 'completed'""",
            [ids],
        ).fetchone()
        return float(row[0]) if row is not None and row[1] == len(ids) else None

    def left() -> list[tuple[Any, ...]]:
        return conn.execute("SELECT id FROM tasuki.job WHERE id = any(%s)", [culprits]).fetchall()

    wait(lambda: seconds() is not None and not left(), PATIENCE)
    took = seconds()
    return 0.0 if took is None else len(ids) / took


def _needed(runner: Runner) -> frozenset[int]:
    """The supervisor and its two helpers, by pid: what a job forks later has the forkserver's command line, too."""
    forkserver = host.forkserver_of(runner.pid)
    tracker = [each.pid for each in host.children_of(runner.pid) if "resource_tracker" in each.command]
    return frozenset({runner.pid, *tracker, *([] if forkserver is None else [forkserver])})


def _children(runner: Runner) -> frozenset[int]:
    """The child that each slot has now."""
    return frozenset({e["slot"]: e["pid"] for e in runner.events() if e.get("event") == "child ready"}.values())
