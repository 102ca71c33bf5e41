"""The real program as a child of a script: `python -m tasuki_mp run …`, tagged, its log in a file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from scripts.harness import host
from tasuki_mp.embedded import watch

ROOT: Final = Path(__file__).resolve().parents[2]


class Runner:
    """One supervisor. What it and its children print goes to `log`, one JSON object a line."""

    def __init__(
        self,
        *options: str,
        app: str,
        dsn: str,
        log: Path,
        tag: str,
        level: str = "info",
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.log = log
        self.options = options
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    *("-m", "tasuki_mp", "run", "--app", app, "--app-dir", str(ROOT)),
                    *("--log-format", "json", "--log-level", level),
                    *options,
                ],
                cwd=ROOT,
                env={**os.environ, "TASUKI_DSN": dsn, host.TAG_VARIABLE: tag, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float) -> int | None:
        """Its exit code once it has ended; None if it has not within that time."""
        if not watch.wait_gone(self.pidfd, timeout):
            return None
        return self._process.wait()

    def close(self) -> None:
        """Kill it if it still lives."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._process.wait()
        os.close(self.pidfd)

    def events(self) -> Iterator[dict[str, Any]]:
        """What it logged so far; lines that are not its own are left out."""
        return events(self.log)


def events(log: Path) -> Iterator[dict[str, Any]]:
    """The events in a JSON log; lines of others in it are passed over."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("{"):
                with contextlib.suppress(ValueError):  # cut off by a SIGKILL
                    yield json.loads(line)
