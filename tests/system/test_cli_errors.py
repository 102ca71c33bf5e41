"""What a user's mistake looks like: one line, the documented exit code, no password, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tasuki_mp import cli
from tasuki_mp.config import ExitCode
from tasuki_mp.version import __version__
from tests.system.conftest import Tasuki

UNREACHABLE = "postgresql://ann:hunter2@127.0.0.1:1/shop"
COMMANDS = [
    ["run", "--app", "tests.support.shop:app"],
    ["migrate"],
    ["migrate", "--check"],
    ["status"],
    ["status", "--json", "--watch"],
    ["show", "1"],
    ["cancel", "1"],
    ["enqueue", "h", "{}"],
]


def complaint(err: str) -> str:
    """The one line that the program complained in."""
    [line] = [line for line in err.splitlines() if line.startswith("tasuki-mp: ")]
    assert err.splitlines()[-1] == line
    assert "Traceback" not in err
    return line


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_database_is_named(tasuki: Tasuki, command: list[str]) -> None:
    ended = tasuki(*command)
    assert ended.code == ExitCode.USAGE
    assert "which database? Set TASUKI_DSN" in complaint(ended.err)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_database_can_not_be_reached(tasuki: Tasuki, command: list[str]) -> None:
    ended = tasuki(*command, "--dsn", UNREACHABLE)
    assert ended.code == ExitCode.DATABASE
    line = complaint(ended.err)
    assert "can't reach the database shop on 127.0.0.1:1 as ann" in line
    assert "Connection refused" in line
    assert "hunter2" not in ended.out + ended.err


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in (COMMANDS[0], ["migrate"])], ids=" ".join)
def test_an_empty_database_is_to_be_migrated(tasuki: Tasuki, empty_dsn: str, command: list[str]) -> None:
    ended = tasuki(*command, "--dsn", empty_dsn)
    assert ended.code == ExitCode.DATABASE
    assert "run `tasuki-mp migrate`" in ended.err + ended.out


def test_a_newer_schema_is_refused(tasuki: Tasuki, dsn: str, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO tasuki.migration (number, name, checksum) VALUES (9000, 'later', '')")
    for command in COMMANDS:
        ended = tasuki(*command, "--dsn", dsn)
        assert ended.code == ExitCode.DATABASE
        assert "the database's schema is at version 9000" in complaint(ended.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "--procs"], "'--procs' requires an argument"),
        (["show", "x"], "'x' is no id, which is a whole number"),
        (["show", "0"], "'0' is no id"),
        (["cancel", "7,8"], "'7,8' is no id"),
        (["batch", "cancel", " "], "' ' is no id or name of a batch"),
        (["cancel"], "which jobs?"),
        (["status", "--every", "soon"], "'soon' is no duration"),
    ],
)
def test_a_wrong_command_line(tasuki: Tasuki, arguments: list[str], message: str) -> None:
    ended = tasuki(*arguments)
    assert ended.code == ExitCode.USAGE
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_a_wrong_option_is_reported_before_anything_starts(tasuki: Tasuki, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.tasuki-mp]\nproc = 2\n")
    ended = tasuki("run", "--app", "a:b", "--dsn", "embedded")
    assert ended.code == ExitCode.USAGE
    assert "pyproject.toml: unknown option 'proc'" in complaint(ended.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--app", "nope"], "--app: 'nope' names no application; write it as package.module:name"),
        (["--app", "shop/jobs.py:app"], "--app: 'shop/jobs.py:app' names no application"),
        (["--app", "shop.jobs:app", "--app-dir", "/nowhere"], "--app-dir: '/nowhere' is no folder"),
    ],
)
def test_what_can_be_no_application_is_refused_before_the_database_is_asked(
    tasuki: Tasuki, options: list[str], message: str
) -> None:
    ended = tasuki("run", "--dsn", UNREACHABLE, *options)
    assert ended.code == ExitCode.USAGE
    assert message in complaint(ended.err)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("tests.support.shop:nope", "the module tests.support.shop has no 'nope'"),
        ("tests.support.shop:__name__", "is str, not a tasuki_mp.Tasuki application"),
    ],
)
def test_a_module_without_the_application_is_said_in_a_line(tasuki: Tasuki, dsn: str, app: str, message: str) -> None:
    ended = tasuki("run", "--dsn", dsn, "--app", app, "--app-dir", Path(__file__).parents[2])
    assert ended.code == ExitCode.APP
    assert message in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_debug_shows_the_traceback(tasuki: Tasuki) -> None:
    ended = tasuki("--debug", "status", "--dsn", "mysql://x")
    assert ended.code == ExitCode.USAGE
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("tasuki-mp: --dsn: mysql://")


def test_a_query_that_fails_is_one_line(tasuki: Tasuki, dsn: str, conn: psycopg.Connection) -> None:
    conn.execute("DROP TABLE tasuki.supervisor CASCADE")
    ended = tasuki("status", "--dsn", dsn)
    assert ended.code == ExitCode.DATABASE
    assert "run `tasuki-mp migrate`" in complaint(ended.err)


def test_what_nobody_expected_asks_for_a_report(tasuki: Tasuki, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_invoke", broken)
    ended = tasuki("status")
    assert ended.code == ExitCode.FAILED
    assert "ZeroDivisionError" in ended.err
    assert "please report it" in ended.err


def test_windows_is_refused(tasuki: Tasuki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    ended = tasuki("--version")
    assert ended.code == ExitCode.USAGE
    said = complaint(ended.err).removeprefix("tasuki-mp: ")
    assert said == "jobs run on Linux, and enqueueing works on macOS too, but nothing on Windows: use WSL"


# ── in a process of its own ───────────────────────────────────────────────────────────────────────────────────────────


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tasuki_mp", *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=120, **options)  # type: ignore[call-overload]  # passed through


def test_the_version_is_quick_to_tell() -> None:
    ended = program("--version")
    assert (ended.returncode, ended.stdout) == (0, f"tasuki-mp {__version__}\n")
    script = """
import sys
from tasuki_mp import cli
cli.exit_code_of(["--version"])
print([name for name in ("psycopg", "rich", "uvloop", "prometheus_client") if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.splitlines()[-1] == "[]"


def test_the_exit_code_reaches_the_shell() -> None:
    ended = program("status", "--dsn", UNREACHABLE)
    assert ended.returncode == ExitCode.DATABASE
    complaint(ended.stderr)


def test_a_reader_that_leaves_is_no_error(dsn: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        ended = subprocess.run(
            [sys.executable, "-m", "tasuki_mp", "status", "--json", "--dsn", dsn],
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert (ended.returncode, ended.stderr) == (cli.BROKEN_PIPE, "")
