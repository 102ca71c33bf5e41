"""What happens to the system during a chaos run. Which faults, in which order and to whom, follows from the seed."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import psycopg

from scripts.chaos.fleet import Fleet, Member
from scripts.harness import host
from scripts.harness.server import Server, StopMode

# Relative frequencies.
SHARES: Final[dict[str, int]] = {
    "child killed": 8,
    "child segfaults": 4,
    "supervisor killed": 3,
    "supervisor told to stop": 2,
    "supervisor frozen": 2,
    "forkserver killed": 1,
    "database stopped fast": 1,
    "database stopped immediately": 1,
    "backends terminated": 3,
    "connections cut": 4,
    "replies lost": 6,
    "network stands still": 2,
    "rows locked": 2,
}

LOOK_EVERY: Final = 0.1
"""Seconds between two looks at which supervisors have ended."""


class Record(NamedTuple):
    """One fault as it happened; `seconds` is how long it lasted."""

    at: datetime
    kind: str
    target: str
    seconds: float


class Director:
    """Does one fault after the other, and later what undoes it. Driven by whoever calls `step`."""

    def __init__(self, fleet: Fleet, server: Server, *, lease: float, pause: float, seed: int) -> None:
        self._fleet = fleet
        self._server = server
        self._lease = lease
        self._pause = pause
        self._chance = random.Random(f"{seed} faults")
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._next_at = host.now() + pause
        self._is_database_down = False
        self.records: list[Record] = []

    @property
    def counts(self) -> Counter[str]:
        return Counter(record.kind for record in self.records)

    def step(self) -> float:
        """Do what is due; returns the seconds until something is due again."""
        now = host.now()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        if now >= self._next_at:
            self._strike()
            self._next_at = host.now() + self._pause * self._chance.uniform(0.3, 1.7)
        self._fleet.look()
        due = [self._next_at, host.now() + LOOK_EVERY, *(at for at, _, _ in self._later[:1])]
        return max(0.0, min(due) - host.now())

    def make_good(self) -> None:
        """The end of all faults: undo what still lasts."""
        for _, _, undo in sorted(self._later, key=lambda entry: entry[:2]):
            undo()
        self._later.clear()

    def _in(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._later, (host.now() + seconds, next(self._numbers), work))

    def _strike(self) -> None:
        chance = self._chance
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        member = chance.choice(self._fleet.members)
        # Drawn whether it is used or not, so that the sequence does not depend on timing.
        share, seconds = chance.random(), chance.random()
        at = datetime.now(UTC)
        target, lasts = self._do(kind, member, share, seconds)
        if target:
            self.records.append(Record(at, kind, target, lasts))

    def _do(self, kind: str, member: Member, share: float, amount: float) -> tuple[str, float]:
        """Who was hit and for how long; nobody, if that is not possible just now."""
        match kind:
            case "child killed" | "child segfaults":
                return self._kill_child(member, share, signal.SIGKILL if kind == "child killed" else signal.SIGSEGV), 0
            case "forkserver killed":
                pid = member.pid and host.forkserver_of(member.pid)
                return (_kill(pid, signal.SIGKILL) if pid else ""), 0
            case "supervisor killed":
                return self._restart(member, signal.SIGKILL, amount), amount
            case "supervisor told to stop":
                return self._restart(member, signal.SIGTERM, amount), amount
            case "supervisor frozen":
                return self._freeze(member, self._lease * (0.5 + 2 * amount))
            case "database stopped fast" | "database stopped immediately":
                return self._stop_database("fast" if kind.endswith("fast") else "immediate", share, amount)
            case "backends terminated":
                return self._terminate(share), 0
            case "connections cut":
                member.relay.cut()
                return member.name, 0
            case "replies lost":
                member.relay.lose_replies()
                return member.name, 0
            case "network stands still":
                member.relay.stand_still()
                lasts = self._lease * 2 * amount
                self._in(lasts, member.relay.go_on)
                return member.name, lasts
            case _:
                return self._lock_rows(amount)

    def _stop_database(self, mode: StopMode, share: float, amount: float) -> tuple[str, float]:
        if self._is_database_down:
            return "", 0.0
        self._server.stop(mode)
        self._is_database_down = True
        down = amount * (self._lease * 1.5 if share < 0.3 else 0.5)
        self._in(down, self._start_database)
        return "server", down

    def _start_database(self) -> None:
        self._server.start()
        self._is_database_down = False

    def _kill_child(self, member: Member, share: float, number: signal.Signals) -> str:
        pids = host.slots_of(member.pid) if member.pid is not None else []
        return _kill(pids[int(share * len(pids))], number) if pids else ""

    def _restart(self, member: Member, number: signal.Signals, pause: float) -> str:
        if not member.is_steady:
            return ""
        member.stop(number, pause=pause)
        return member.generation

    def _freeze(self, member: Member, seconds: float) -> tuple[str, float]:
        if not member.is_steady:
            return "", 0.0
        member.freeze()
        self._in(seconds, member.thaw)
        return member.generation, seconds

    def _terminate(self, share: float) -> str:
        conn = self._connected()
        if conn is None:
            return ""
        with conn:
            rows = conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tasuki-mp%%' AND random() < %s", (share,)
            ).fetchall()
            for (pid,) in rows:
                conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
        return f"{len(rows)} backends"

    def _lock_rows(self, seconds: float) -> tuple[str, float]:
        conn = self._connected()
        if conn is None:
            return "", 0.0
        conn.execute("BEGIN")
        rows = conn.execute("SELECT id FROM tasuki.job ORDER BY random() LIMIT 20 FOR UPDATE SKIP LOCKED").fetchall()
        self._in(2 * seconds, conn.close)
        return f"{len(rows)} rows", 2 * seconds

    def _connected(self) -> psycopg.Connection[Any] | None:
        """A connection in autocommit, past the relays; None while the server is down."""
        try:
            return psycopg.connect(self._server.dsn, autocommit=True)
        except psycopg.OperationalError:
            return None


def _kill(pid: int, number: signal.Signals) -> str:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return ""
    return str(pid)
