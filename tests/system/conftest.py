"""The command line in this process: `tasuki` runs one command and gives its exit code and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasuki_mp import cli


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Tasuki = Callable[..., Ended]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No option and no dsn from the environment, the working directory or the home of whoever runs the tests."""
    for name in ("TASUKI_DSN", "DATABASE_URL", "TASUKI_APP", "TASUKI_PROCS", "TASUKI_QUEUE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tasuki(alone: None, capfd: pytest.CaptureFixture[str]) -> Tasuki:
    """`tasuki("status", "--dsn", dsn)`."""

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        code = cli.exit_code_of([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run
