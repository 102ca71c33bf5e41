"""A long job is killed in five ways, and still costs hardly more CPU time than it needs. Part of `scripts.show`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from scripts import show_long_app
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import Server
from scripts.harness.waiting import wait
from scripts.show_long_app import PIECE

LOST_AT_MOST: Final = 2.0
"""Seconds of work that may have to be done again after one kill."""
KILLS: Final = 4
"""Ways that leave no time for a last note."""
MOVED_WITHIN: Final = 1.0
"""Seconds between the end of a job on a host that is shut down and its beginning on another one."""


class Stage(Protocol):
    """What this needs of the script's stage."""

    dsn: str
    folder: Path
    server: Server

    def start(self, *options: str, app: str) -> Runner: ...


class Board(Protocol):
    def promise(self, what: str, wanted: str, seen: object, *, is_kept: bool) -> None: ...


@dataclass(frozen=True)
class Note:
    """What the job wrote down: `done` is its work in seconds of CPU time, `cpu` that of this attempt alone."""

    what: str
    lease_no: int
    attempt: int
    pid: int
    done: float
    cpu: float
    at: float


class Notes:
    """The job's own notes, which no restart and no kill can change."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "notes"

    def all(self) -> list[Note]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="ascii").splitlines()
        return [Note(**json.loads(line)) for line in lines if line.endswith("}")]

    def last(self) -> Note | None:
        notes = self.all()
        return notes[-1] if notes else None


class Long:
    """The show: one job, one way to die after the other, at equal distances."""

    def __init__(self, board: Board, stage: Stage, *, cpu: float) -> None:
        self._board = board
        self._stage = stage
        self._cpu = cpu
        self._notes = Notes(stage.folder)
        self._runner = self._start()
        self._retired: list[Runner] = []

    def run(self) -> None:
        job = show_long_app.grind.job(seconds=self._cpu, folder=self._stage.folder)
        with psycopg.connect(self._stage.dsn, autocommit=True) as conn:
            job_id = show_long_app.app.enqueue(job, conn).id
        ways: list[tuple[str, Callable[[Note], None]]] = [
            ("its child is killed", self._kill_child),
            ("its supervisor is killed", self._kill_supervisor),
            ("its child is killed while the database restarts", self._restart_database),
            ("a deploy ends its supervisor", self._deploy),
            ("it takes more memory than it may", self._leak),
        ]
        began = host.now()
        for number, (what, act) in enumerate(ways, start=1):
            before = self._reached(self._cpu * number / (len(ways) + 1))
            print(f"{host.now() - began:6.1f} s: after {before.done:.1f} s of work {what}", flush=True)
            act(before)
            self._report(what, before)
        row = self._wait_final(job_id)
        self._board.promise("the job", "completed", row["status"], is_kept=row["status"] == "completed")
        runs = {note.lease_no: note for note in self._notes.all()}
        self._board.promise("times it was started", str(len(ways) + 1), len(runs), is_kept=len(runs) == len(ways) + 1)
        ends = self._ends(job_id)
        wanted = ["crash", "lost", "crash", "release", "memory"]
        self._board.promise("what ended its attempts", ", ".join(wanted), ", ".join(ends), is_kept=ends == wanted)
        self._board.promise("attempts counted (a deploy counts none)", "5", row["attempt"], is_kept=row["attempt"] == 5)
        used = sum(note.cpu for note in runs.values()) + KILLS * PIECE  # what the killed had not noted yet, at most
        most = self._cpu * 1.01 + len(ways) * LOST_AT_MOST
        self._board.promise(
            f"CPU time of all attempts for {self._cpu:.0f} s of work",
            f"≤ {most:.1f} s",
            f"{used:.1f} s ({(used / self._cpu - 1) * 100:+.1f} %) in {host.now() - began:.1f} s",
            is_kept=self._cpu <= used <= most,
        )
        left = self._checkpoints()
        self._board.promise("checkpoints left behind", "0", left, is_kept=left == 0)

    # ── ways to die ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _kill_child(self, before: Note) -> None:
        os.kill(before.pid, signal.SIGKILL)

    def _kill_supervisor(self, _before: Note) -> None:
        self._runner.signal(signal.SIGKILL)
        self._runner.wait(10)
        self._runner = self._start()

    def _restart_database(self, before: Note) -> None:
        self._stage.server.stop("immediate")
        os.kill(before.pid, signal.SIGKILL)
        self._stage.server.start()

    def _deploy(self, _before: Note) -> None:
        old, self._runner = self._runner, self._start()
        if not wait(lambda: any(event["event"] == "started" for event in self._runner.events()), 60):
            raise SystemExit("the new supervisor did not start within a minute")
        old.signal(signal.SIGTERM)
        self._retired.append(old)

    def _leak(self, _before: Note) -> None:
        (self._stage.folder / "leak").touch()

    # ── looking on ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> Runner:
        return self._stage.start("--poll", "250ms", app="scripts.show_long_app:app")

    def _reached(self, done: float) -> Note:
        """The job's last note once it has done that much."""

        def far_enough() -> bool:
            note = self._notes.last()
            return note is not None and note.done >= done

        if not wait(far_enough, 60 + 4 * self._cpu):
            raise SystemExit(f"the job has not done {done:.0f} s of its work in time: {self._notes.last()}")
        note = self._notes.last()
        assert note is not None
        return note

    def _report(self, what: str, before: Note) -> None:
        """What its next start began with, compared with its last word before."""

        def again() -> bool:
            return any(note.lease_no > before.lease_no for note in self._notes.all())

        if not wait(again, 60, every=0.01):
            raise SystemExit(f"{what}: the job was not started again within a minute")
        notes = self._notes.all()
        last = [note for note in notes if note.lease_no == before.lease_no][-1]
        first = next(note for note in notes if note.lease_no > before.lease_no)
        # Killed in the middle of a piece, it has lost that too; whoever returns has finished it.
        lost, gap = last.done - first.done + (0 if self._retired else PIECE), first.at - last.at
        seen = f"≤ {lost:.2f} s, on again after {gap:.2f} s"
        self._board.promise(f"{what}: work lost", f"≤ {LOST_AT_MOST:g} s", seen, is_kept=lost <= LOST_AT_MOST)
        if self._retired:
            self._retired.clear()
            self._board.promise(
                f"{what}: goes on elsewhere", f"≤ {MOVED_WITHIN:g} s", f"{gap:.2f} s", is_kept=gap <= MOVED_WITHIN
            )

    def _wait_final(self, job_id: int) -> dict[str, Any]:
        def final() -> dict[str, Any] | None:
            with psycopg.connect(self._stage.dsn, autocommit=True) as conn:
                cursor = conn.execute(
                    "SELECT status, attempt, crashes FROM tasuki.job_archive WHERE id = %s", (job_id,)
                )
                row = cursor.fetchone()
                return None if row is None else dict(zip(("status", "attempt", "crashes"), row, strict=True))

        if not wait(lambda: final() is not None, 60 + 4 * self._cpu):
            raise SystemExit("the job did not end in time")
        found = final()
        assert found is not None
        return found

    def _ends(self, job_id: int) -> list[str]:
        with psycopg.connect(self._stage.dsn, autocommit=True) as conn:
            rows = conn.execute(
                "SELECT coalesce(error ->> 'kind', kind) FROM tasuki.attempt WHERE job_id = %s ORDER BY lease_no",
                (job_id,),
            )
            return [str(row[0]) for row in rows]

    def _checkpoints(self) -> int:
        with psycopg.connect(self._stage.dsn, autocommit=True) as conn:
            row = conn.execute("SELECT count(*) FROM tasuki.checkpoint").fetchone()
            assert row is not None
            return int(row[0])
