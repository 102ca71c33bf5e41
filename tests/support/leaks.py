"""Processes that a test left behind, found by a tag in their environment.

Whatever a tagged process starts inherits the tag, however it is started and wherever it is reparented to. The embedded
database and its watcher do not: they are started with an environment of their own.
"""

from __future__ import annotations

import os
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import NotInTimeError, wait_until

VARIABLE = "TASUKI_TEST_TAG"


@dataclass(frozen=True)
class Leak:
    """A process that carries a tag."""

    pid: int
    command: str


def new_tag() -> str:
    """A value for `VARIABLE` that no other process has."""
    return uuid.uuid4().hex


def tagged(tag: str) -> list[Leak]:
    """The living processes that were started with this tag; zombies do not count."""
    wanted = f"{VARIABLE}={tag}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append(Leak(int(entry.name), command))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or somebody else's
    return found


def assert_none(tag: str, *, timeout: float = 20.0) -> None:
    """Fail unless every process with this tag is gone within the timeout; end those that are not."""
    try:
        wait_until(lambda: not tagged(tag), timeout=timeout)
    except NotInTimeError:
        left = tagged(tag)
        for leak in left:
            try:
                os.kill(leak.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        names = "\n".join(f"  {leak.pid} {leak.command}" for leak in left)
        raise AssertionError(f"processes left behind:\n{names}") from None
