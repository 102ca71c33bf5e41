"""One connection of a supervisor after the other is cut at a chosen message, and each time every job must come out right.

The supervisor lives on through all of it, so nothing may be lost, and nothing may even run twice: an outcome whose reply
was lost is found to be written, and a lease whose reply was lost is given back, its attempt refunded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tasuki_mp.config import ExitCode
from tasuki_mp.supervisor import tree
from tests.support import invariants, jobs
from tests.support.hooked import Supervised
from tests.support.proxy import Fault, FaultProxy
from tests.support.waiting import wait_until

OPTIONS = ("--poll", "50ms", "--lease", "2s")
"""A lease whose reply was lost is looked for with every heartbeat, and there are three of them in a lease."""
APPLICATIONS = ("lease", "finish", "listener", "heartbeat", "upkeep")
"""The connections of a supervisor, by the last word of their application_name."""
_IN_SERVICE = {"listener": 3}
"""How many answers make a connection one in service: before it is, the next attempt takes twice as long to come."""


@dataclass(frozen=True)
class Scene:
    """A supervisor with a proxy before its database, and a journal that its jobs write."""

    conn: psycopg.Connection[Any]
    proxy: FaultProxy
    supervised: Supervised
    journal: Path

    def play(self) -> list[int]:
        """Let a few jobs run; their ids. Fails if any of them comes out wrong, or ran more often than it should."""
        expected = {self._add(): ("completed", 1) for _ in range(3)}
        expected[self._add(failures=1)] = ("completed", 2)
        expected[self._add(failures=1, max_attempts=1)] = ("failed", 1)
        self.conn.execute("SELECT pg_notify('tasuki_job', 'default 0')")
        ended = {job_id: jobs.wait_final(self.conn, job_id) for job_id in expected}
        assert {job_id: (row["status"], row["attempt"]) for job_id, row in ended.items()} == expected
        runs = Counter(self.journal.read_text(encoding="ascii").splitlines())
        wanted = {f"{job_id} {run + 1}": 1 for job_id, (_, attempts) in expected.items() for run in range(attempts)}
        assert {run: runs[run] for run in runs if int(run.split()[0]) in expected} == wanted
        invariants.check(self.conn, list(expected), at_rest=False)
        return list(expected)

    def play_with(self, fault: Fault, *, is_cut_before: bool = False, is_awaited: bool = False) -> bool:
        """Let jobs run while this happens to a connection; whether it did.

        With `is_cut_before` the connection is a new one, so that the fault may hit it as it is made. If the fault is
        awaited, more jobs run until it happens, and after it.
        """
        if is_cut_before:
            application = fault.application or ""
            in_service = _IN_SERVICE.get(application, 1)
            wait_until(lambda: self.proxy.answers(application) >= in_service, f"{application} is connected")
            self.proxy.cut(application)
        armed = self.proxy.arm(fault)
        self.play()
        if is_awaited:
            wait_until(lambda: armed.message or not self.play(), f"{fault}")
        self.proxy.heal()
        if is_awaited:
            self.play()
        return armed.message is not None

    def _add(self, *, failures: int = 0, max_attempts: int = 5) -> int:
        payload = {"journal": str(self.journal), "failures": failures}
        return jobs.add(self.conn, handler="mark", payload=payload, max_attempts=max_attempts)


@contextmanager
def scene(dsn: str, conn: psycopg.Connection[Any], folder: Path) -> Iterator[Scene]:
    """Set the scene; afterwards the supervisor stops as if nothing had been."""
    with (
        FaultProxy(dsn) as proxy,
        Supervised(proxy.dsn, *OPTIONS, app="tests.support.puppet:app", procs=2) as supervised,
    ):
        supervised.started()
        yield Scene(conn, proxy, supervised, folder / "journal")
        assert supervised.stop() == 0
    invariants.check(conn)


def start_with(fault: Fault, dsn: str, conn: psycopg.Connection[Any]) -> bool:
    """Start a supervisor to which this happens; whether it did. It must work, or end so that the next one does."""
    job_id = jobs.add(conn, handler="note")
    with FaultProxy(dsn) as proxy:
        armed = proxy.arm(fault)
        with Supervised(proxy.dsn, "--poll", "50ms") as supervised:
            wait_until(lambda: jobs.final(conn, job_id) or not tree.is_alive(supervised.pidfd), "its work, or its end")
            has_worked = tree.is_alive(supervised.pidfd)
            assert (supervised.stop() if has_worked else supervised.wait()) == (
                ExitCode.OK if has_worked else ExitCode.DATABASE
            )
    if not has_worked:
        row = jobs.live(conn, job_id)
        assert row is not None
        assert (row["status"], row["attempt"]) == ("pending", 0)
        with Supervised(dsn, "--poll", "50ms") as following:
            jobs.wait_final(conn, job_id)
            # The first one may have been registered already, and had no connection left to say goodbye on.
            wait_until(lambda: _supervisors(conn) == [following.pid], "the dead one forgotten")
            assert following.stop() == ExitCode.OK
    assert jobs.status(conn, job_id) == "completed"
    invariants.check(conn, [job_id])
    return armed.message is not None


def _supervisors(conn: psycopg.Connection[Any]) -> list[int]:
    return [pid for (pid,) in conn.execute("SELECT pid FROM tasuki.supervisor")]
