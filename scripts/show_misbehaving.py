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

INNOCENT_A_CULPRIT: Final = 15
PATIENCE: Final = 60.0
WHOLE_WITHIN: Final = 1.0
"""Seconds from the culprit's end to a full set of children; half of it is what a busy machine adds."""

CULPRITS: Final = (
    (jobs.hang_in_python, "failed", "timeout"),
    (jobs.hang_in_c, "failed", "timeout"),
    (jobs.ignore_sigterm, "failed", "timeout"),
    (jobs.stop_itself, "failed", "timeout"),
    (jobs.fork_bomb, "failed", "timeout"),
    (jobs.daemonise, "completed", ""),
    (jobs.leave_a_process, "completed", ""),
    (jobs.leak_memory, "failed", "memory"),
    (jobs.close_all, "failed", "crash"),
    (jobs.endless_output, "failed", "timeout"),
    (jobs.dirty_everything, "completed", ""),
    (jobs.change_signals, "completed", ""),
    (jobs.segfault, "failed", "crash"),
    (jobs.exit_at_once, "failed", "crash"),
    (jobs.system_exit, "failed", "error"),
    (jobs.return_nonsense, "failed", "bad_result"),
    (jobs.raise_the_unspeakable, "failed", "error"),
    (jobs.leak_threads, "completed", ""),
    (jobs.leak_descriptors, "completed", ""),
    (jobs.eat_itself, "failed", "crash"),
)
"""Each with what should become of its job."""

Promise = Callable[[str, str, object, bool], None]


def misbehaving(promise: Promise) -> None:
    """Run them all on two slots; tell `promise` what was wanted, what was seen, and whether it was kept."""
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-show-"))
    tag = host.new_tag()
    try:
        with scratch_server() as server, psycopg.connect(server.dsn, autocommit=True) as conn:
            runner = Runner(
                *("--procs", "2"),
                app="scripts.show_misbehaving_app:app",
                dsn=server.dsn,
                log=folder / "log",
                tag=tag,
                level="debug",
            )
            with contextlib.closing(runner):
                for culprit, status, kind in CULPRITS:
                    _one(conn, runner, promise, culprit, status, kind)
                _innocents(conn, promise)
                left = [process for process in host.tagged(tag) if not _is_ours(process.pid, runner)]
                promise("processes that outlived their job", "0", len(left), not left)
            wait(lambda: not host.tagged(tag), PATIENCE)
            left = host.tagged(tag)
            promise("processes left at the end", "0", len(left), not left)
    finally:
        shutil.rmtree(folder)


def _one(conn: psycopg.Connection[Any], runner: Runner, promise: Promise, culprit: Any, status: str, kind: str) -> None:
    """One culprit between innocent jobs that keep the other slot busy."""
    jobs.app.enqueue_many((jobs.innocent.job(n) for n in range(INNOCENT_A_CULPRIT)), conn)
    job_id = jobs.app.enqueue(culprit.job().priority(0), conn).id

    def row() -> tuple[Any, ...] | None:
        return conn.execute(
            "SELECT status, coalesce(error ->> 'kind', ''), error ->> 'message' FROM tasuki.job_archive WHERE id = %s",
            [job_id],
        ).fetchone()

    wait(lambda: row() is not None, PATIENCE)
    found = row()
    if found is None:
        promise(culprit.name, f"{status} {kind}".strip(), "not ended", False)
        return
    wait(lambda: _whole_after(runner, job_id) is not None, PATIENCE)
    whole = _whole_after(runner, job_id)
    seen = f"{found[0]} {found[1]}".strip()
    after = "never" if whole is None else "child kept" if whole == 0 else f"new child after {whole * 1000:.0f} ms"
    is_kept = (found[0], found[1]) == (status, kind) and whole is not None and whole <= WHOLE_WITHIN
    promise(culprit.name, f"{status} {kind}".strip(), f"{seen}; {after}", is_kept)


def _whole_after(runner: Runner, job_id: int) -> float | None:
    """Seconds from the job's end to a child in its slot: 0 if it kept its own, None while there is none."""
    ended, slot, needs = None, None, False
    for event in runner.events():
        name = event.get("event")
        if name == "job dispatched" and event.get("job") == job_id:
            slot = event["slot"]
        elif event.get("job") == job_id and str(name) in ("job failed", "job completed"):
            ended = _time(event)
            # Whoever was killed for its limits leaves no child behind.
            needs = needs or event.get("kind") in ("timeout", "memory")
        elif slot is not None and event.get("slot") == slot:
            if name in ("child died", "child is replaced", "child is killed"):
                needs = True
            elif name == "child ready" and ended is not None and needs:
                return max(0.0, _time(event) - ended)
            elif name == "job dispatched" and ended is not None and not needs:
                return 0.0
    if ended is not None and not needs:
        return 0.0
    return None


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


def _is_ours(pid: int, runner: Runner) -> bool:
    """Whether that is the supervisor, or a process it needs: forkserver, tracker, the children of its slots."""
    if pid == runner.pid:
        return True
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return b"multiprocessing" in command or b"forkserver" in command
