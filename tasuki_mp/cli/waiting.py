"""Waiting for jobs at a command line: until all of them are final, or the time is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp.cli import progress
from tasuki_mp.cli.database import Database, explain
from tasuki_mp.cli.text import duration, number
from tasuki_mp.config import ExitCode
from tasuki_mp.store import await_jobs
from tasuki_mp.store.await_jobs import Ended
from tasuki_mp.store.connect import connect
from tasuki_mp.store.copying import IdRanges

_SHORTEST: Final = 0.02
_LONGEST: Final = 2.0
_GROWTH: Final = 1.5
_REST: Final = 20
"""Looking takes at most one part in so many of the time."""
_PATIENCE: Final = 300.0
"""Seconds that the database may be away."""

Connection = psycopg.Connection[tuple[Any, ...]]


class Outcome(msgspec.Struct, frozen=True):
    """What became of the jobs that were waited for."""

    jobs: int
    left: int
    ended: dict[str, Ended]

    @property
    def gone(self) -> int:
        """Those that are neither live nor in the archive: somebody deleted them."""
        # Counted at two instants: only when none is left, none can have moved between them.
        return 0 if self.left else self.jobs - sum(each.jobs for each in self.ended.values())

    @property
    def code(self) -> ExitCode:
        if self.left:
            return ExitCode.TIMEOUT
        completed = self.ended["completed"].jobs if "completed" in self.ended else 0
        return ExitCode.OK if completed == self.jobs else ExitCode.NOT_COMPLETED

    @property
    def counts(self) -> dict[str, int]:
        found = {state: self.ended[state].jobs if state in self.ended else 0 for state in _FINAL}
        return {**found, "left": self.left, "gone": self.gone}

    def words(self, timeout: float | None) -> str:
        """For people, in one line, what is not as it should be; empty if all completed."""
        said = []
        for state, verb in (("failed", "failed"), ("canceled", "was canceled")):
            if (found := self.ended.get(state)) is not None:
                first = f" (the first: {found.first_id}{_error(found)})" if self.jobs > 1 else _error(found)
                said.append(f"{number(found.jobs)} {verb}{first}")
        if self.gone:
            said.append(f"{number(self.gone)} deleted meanwhile")
        if self.left:
            said.append(f"{number(self.left)} not final after {duration(timeout or 0)}")
        if not said:
            return ""
        return f"of {number(self.jobs)} {'job' if self.jobs == 1 else 'jobs'}: " + ", ".join(said)


_FINAL: Final = ("completed", "failed", "canceled")


def _error(ended: Ended) -> str:
    if ended.status != "failed" or not ended.error_type:
        return ""
    return f", {ended.error_type}: {ended.error_message or ''}"


def wait(
    conn: Connection,
    database: Database,
    ids: IdRanges,
    *,
    timeout: float | None,
    renew: Callable[[Connection], None],
) -> Outcome:
    """What became of these jobs, once all are final or the time is over.

    A database that goes away is waited for; `renew` makes the new connection what the old one was.
    """
    deadline = None if timeout is None else monotonic() + timeout
    pause = _SHORTEST
    total = len(ids)
    current = conn
    try:
        with progress.bar("waiting") as report:
            while True:
                started = monotonic()
                try:
                    left = await_jobs.left(current, ids)
                    if not left or (deadline is not None and started >= deadline):
                        return Outcome(total, left, await_jobs.ended(current, ids))
                except psycopg.OperationalError as error:
                    if not current.broken:
                        raise
                    current = _connect_again(database, error, deadline)
                    renew(current)
                    continue
                report(total - left, total, f"{number(total - left)} of {number(total)}")
                until = monotonic() + max(pause, _REST * (monotonic() - started))
                until = until if deadline is None else min(until, deadline)
                threading.Event().wait(max(0.0, until - monotonic()))
                pause = min(pause * _GROWTH, _LONGEST)
    finally:
        if current is not conn:
            current.close()


def _connect_again(database: Database, error: psycopg.Error, deadline: float | None) -> Connection:
    given_up = monotonic() + _PATIENCE if deadline is None else deadline
    while True:
        if monotonic() >= given_up:
            raise explain(error, database) from error
        threading.Event().wait(0.5)
        try:
            return connect(database.dsn, name="enqueue", statement_timeout=0)
        except psycopg.OperationalError as again:
            error = again
