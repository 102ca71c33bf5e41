"""The supervisors of a chaos run, each behind a relay of its own."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Final
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from scripts.chaos.relay import Relay
from scripts.harness import host, journal
from scripts.harness.runner import Runner
from scripts.harness.server import Server

STOP_FOR: Final = 40.0
"""Seconds within which a supervisor that was told to stop must have ended: more than its grace and its flushing."""
START_AGAIN: Final = 0.3
"""Seconds until one that ended by itself is started again."""


class Member:
    """One place in the fleet: a supervisor that is started again whenever it has ended, as systemd would."""

    def __init__(self, name: str, fleet: Fleet) -> None:
        self.name = name
        self.is_frozen = False
        self.exit_codes: list[int] = []
        """Of those that were told to stop after they had said anything; -1 for one that did not end in time."""
        self.own_ends: list[tuple[str, int]] = []
        """Those that ended though nobody told or killed them, with their exit codes."""
        self._fleet = fleet
        self._generations = itertools.count(1)
        self.relay = Relay(fleet.folder / f"relay-{name}", lambda: fleet.server.socket)
        self.generation = ""
        self._told_at: float | None = None
        self._is_killed = False
        self._start_at = 0.0
        self._runner: Runner | None = None
        self._start()

    @property
    def pid(self) -> int | None:
        """That of the supervisor, while one runs here."""
        return self._runner.pid if self._runner is not None and self._runner.is_alive else None

    @property
    def is_steady(self) -> bool:
        """Whether a supervisor runs here and nobody has told it to stop, or stopped it."""
        return self.pid is not None and self._told_at is None and not self.is_frozen

    def stop(self, number: signal.Signals, *, pause: float) -> None:
        """Tell it to stop, or kill it; another one follows that many seconds after its end."""
        assert self._runner is not None
        if number == signal.SIGKILL:
            self._is_killed = True
        else:
            self._told_at = host.now()
        self._start_at = host.now() + pause
        self._runner.signal(number)

    def look(self, *, is_started_again: bool = True) -> None:
        """See whether it has ended, take note of how, and start the next one when it is time."""
        now = host.now()
        if self._runner is not None:
            if self._runner.is_alive:
                if self._told_at is None or now - self._told_at < STOP_FOR:
                    return
                self._runner.close()
                self.exit_codes.append(-1)
            else:
                self._ended(self._runner, now)
            self._runner = None
        if is_started_again and now >= self._start_at:
            self._start()

    def freeze(self) -> None:
        assert self._runner is not None
        self.is_frozen = True
        self._runner.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._runner is not None
        self.is_frozen = False
        self._runner.signal(signal.SIGCONT)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
        self.relay.close()

    def _start(self) -> None:
        self.generation = f"{self.name}.{next(self._generations)}"
        self._told_at, self._is_killed = None, False
        self._runner = Runner(
            *self._fleet.options,
            app="scripts.chaos.app:app",
            dsn=self._dsn,
            log=self._fleet.folder / f"{self.generation}.log",
            tag=self._fleet.tag,
            level=self._fleet.level,
            env=journal.environment(self._fleet.journal, self.generation),
        )

    def _ended(self, runner: Runner, now: float) -> None:
        code = runner.wait(0)
        assert code is not None
        runner.close()
        if self._told_at is not None:
            # Before the first line it may still be importing what would handle the signal, and has leased nothing.
            if code != -signal.SIGTERM or runner.log.stat().st_size:
                self.exit_codes.append(code)
        elif not self._is_killed:
            self.own_ends.append((self.generation, code))
            self._start_at = now + START_AGAIN

    @property
    def _dsn(self) -> str:
        parts = conninfo_to_dict(self._fleet.server.dsn)
        folder = quote(str(self.relay.folder), safe="")
        return f"postgresql://{parts['user']}:{parts['password']}@/{parts['dbname']}?host={folder}&port=5432"


class Fleet:
    """All supervisors."""

    def __init__(
        self, count: int, *, server: Server, folder: Path, tag: str, options: tuple[str, ...], level: str
    ) -> None:
        self.server = server
        self.folder = folder
        self.tag = tag
        self.options = options
        self.level = level
        self.journal = folder / "journal"
        self.members: list[Member] = []
        for number in range(count):
            self.members.append(Member(chr(ord("A") + number), self))

    def look(self) -> None:
        """Start again whatever has ended and should run."""
        for member in self.members:
            member.look()

    def stop(self) -> None:
        """Tell all of them to stop. `is_stopped` says when they have."""
        for member in self.members:
            if member.pid is not None:
                member.stop(signal.SIGTERM, pause=0)

    @property
    def is_stopped(self) -> bool:
        for member in self.members:
            member.look(is_started_again=False)
        return all(member.pid is None for member in self.members)

    def close(self) -> None:
        for member in self.members:
            member.close()
