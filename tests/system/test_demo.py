"""`tasuki-mp demo` on a folder of its own: what it shows, that it repeats, and that an interrupted one is resumed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.embedded import FOLDER_VARIABLE, MAJOR
from tasuki_mp.embedded.watch import noted_pid
from tests.support.postgres import temporary_folder
from tests.support.program import Program
from tests.support.waiting import wait_for_row, wait_gone

pytestmark = pytest.mark.usefixtures("tag")

GOOD = 8
BAD = {
    "broken.py": b"def f(:\n",
    "not decodable.py": b"# coding: utf-8\nname = '\xff'\n",
    "nul.py": b"name = '\0'\n",
    "unknown_coding.py": b"# coding: no-such\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Python files of which some are none, in a path with a space, beside things that are to be left out."""
    root = tmp_path / "some sources"
    (root / "deeper" / "site-packages").mkdir(parents=True)
    (root / "deeper" / "site-packages" / "installed.py").write_text("x = 1\n")
    (root / "deeper" / "notes.txt").write_text("no Python\n")
    (root / "deeper" / "dangling.py").symlink_to(root / "nowhere.py")
    for number in range(GOOD):
        source = f"def f{number}(a):\n" + "    if a:\n        a -= 1\n" * number + "    return a\n"
        (root / "deeper" / f"good_{number}.py").write_text(source)
    for name, content in BAD.items():
        (root / name).write_bytes(content)
    return root


def demo(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasuki_mp", "demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_demo_analyses_every_file_and_lists_those_it_cannot(
    dsn: str, conn: psycopg.Connection[Any], folder: Path
) -> None:
    done = demo("--dsn", dsn, "--folder", folder, "--procs", 2)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"speed-up: \d+\.\d\d", lines[-1])
    assert f"enqueued {GOOD + len(BAD)} files of {folder}, one job each" in lines
    assert f"{len(BAD)} of {GOOD + len(BAD)} files could not be analysed:" in lines
    assert [line.split(":")[0].strip() for line in lines if ": SyntaxError: " in line] == sorted(BAD)
    assert f"files: {GOOD + len(BAD)} ({len(BAD)} failed)" in lines
    assert f"lines: {sum(2 + 2 * number for number in range(GOOD))}" in lines
    assert f"functions: {GOOD} (mean complexity 4.50)" in lines
    table = [line.split() for line in lines if re.fullmatch(r" +\d+ +f\d +deeper/good_\d\.py:1 *", line)]
    assert [int(row[0]) for row in table] == list(range(GOOD, 0, -1))
    for name in ("jobs per second", "CPU seconds used", "seconds with 2 processes", "seconds in one process"):
        assert any(re.fullmatch(rf"{name}: [\d.]+", line) for line in lines), name
    # Each failed at its first attempt: what can't be parsed today can't be parsed tomorrow.
    assert conn.execute(
        "SELECT status, count(*), max(attempt) FROM tasuki.job_archive GROUP BY status ORDER BY status"
    ).fetchall() == [("completed", GOOD, 1), ("failed", len(BAD), 1)]
    assert not any(line.startswith("job failed") or "ERROR" in line for line in lines)


def test_without_a_dsn_it_has_a_postgres_of_its_own(folder: Path) -> None:
    room = temporary_folder("tasuki-mp-demo-")
    try:
        # The environment names a database for others; the demo never touches it.
        env = {FOLDER_VARIABLE: str(room / "pg"), "TASUKI_DSN": "postgresql://nobody@127.0.0.1:1/none"}
        done = demo("--folder", folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[0] == f"database: embedded PostgreSQL {MAJOR} in {room / 'pg'}"
        assert f"files: {GOOD + len(BAD)} ({len(BAD)} failed)" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("speed-up: ")
        pid = noted_pid(room / "pg" / "data")
        if pid is not None:
            wait_gone(pid)
    finally:
        shutil.rmtree(room)


def test_second_demo_does_not_count_the_first_ones_files(dsn: str, folder: Path) -> None:
    demo("--dsn", dsn, "--folder", folder)
    (folder / "deeper" / "good_0.py").unlink()
    again = demo("--dsn", dsn, "--folder", folder)
    assert f"files: {GOOD + len(BAD) - 1} ({len(BAD)} failed)" in again.stdout.splitlines()


def heavy(folder: Path, count: int) -> None:
    """Files of which one process analyses some ten a second."""
    folder.mkdir()
    source = "def f(a, b):\n    return [x for x in a if x and b or x in (1, 2, 3)]\n" * 1_000
    for number in range(count):
        (folder / f"heavy_{number:03}.py").write_text(source)


def test_interrupted_demo_leaves_jobs_and_the_next_one_goes_on_with_them(
    dsn: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    count = 10
    heavy(tmp_path / "heavy", count)
    arguments = ("-m", "tasuki_mp", "demo", "--dsn", dsn, "--folder", str(tmp_path / "heavy"), "--procs", "1")
    with Program(*arguments, stderr=subprocess.STDOUT) as first:
        line = ""
        while not line.startswith("files: "):
            line = first.line(timeout=120)
        first.signal(signal.SIGINT)
        lines = first.further_lines(timeout=120)
        assert first.wait() == 130
    assert "stopping: running jobs may finish; Ctrl-C again stops them" in lines
    [[left, running]] = conn.execute(
        "SELECT count(*), count(*) FILTER (WHERE status = 'running') FROM tasuki.job"
    ).fetchall()
    assert 0 < left < count
    assert running == 0
    assert lines[-1] == f"interrupted: {left} of {count} files are left; the next demo goes on with them"

    # Another folder is not looked at while the first one's jobs are waiting.
    heavy(tmp_path / "other", 1)
    again = demo("--dsn", dsn, "--folder", tmp_path / "other")
    assert again.returncode == 0, again.stdout + again.stderr
    lines = again.stdout.splitlines()
    done = count - left
    assert f"going on with an interrupted demo: {done} of {count} files are done (--fresh: anew)" in lines
    assert f"files: {count} (0 failed)" in lines
    assert re.fullmatch(r"speed-up: \d+\.\d\d", lines[-1])
    assert conn.execute("SELECT count(*), max(attempt) FROM tasuki.job_archive").fetchone() == (count, 1)


def test_fresh_demo_cancels_what_is_left(dsn: str, conn: psycopg.Connection[Any], folder: Path) -> None:
    conn.execute("SELECT tasuki.enqueue('analyse', '{\"path\": \"/nowhere.py\"}', queue => 'demo')")
    done = demo("--dsn", dsn, "--folder", folder, "--fresh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "canceled 1 jobs of an earlier demo" in done.stdout
    assert f"files: {GOOD + len(BAD)} ({len(BAD)} failed)" in done.stdout
    assert conn.execute("SELECT count(*) FROM tasuki.job_archive WHERE status = 'canceled'").fetchone() == (1,)


def test_killed_demo_loses_nothing(dsn: str, conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    count = 6
    heavy(tmp_path / "heavy", count)
    arguments = ("-m", "tasuki_mp", "demo", "--dsn", dsn, "--folder", str(tmp_path / "heavy"))
    with Program(*arguments, stderr=subprocess.STDOUT, leaves_behind=True) as first:
        wait_for_row(conn, "SELECT 1 FROM tasuki.job WHERE status = 'running'")
        first.kill()
        # Its supervisor was asked to work until nothing is left, and does.
        wait_for_row(conn, "SELECT 1 WHERE NOT EXISTS (SELECT FROM tasuki.job)", timeout=120)
    assert conn.execute("SELECT count(*) FROM tasuki.job_archive WHERE status = 'completed'").fetchone() == (count,)


def test_supervisor_that_may_not_run_the_jobs_is_reported(
    dsn: str, conn: psycopg.Connection[Any], folder: Path
) -> None:
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('demo', now())")
    done = demo("--dsn", dsn, "--folder", folder)
    assert done.returncode == 3
    assert "the supervisor ended with exit code 3; the next demo goes on with what is left" in done.stdout.splitlines()


def test_settings_for_other_supervisors_do_not_disturb_it(dsn: str, folder: Path) -> None:
    env = {"TASUKI_DSN": "postgresql://nobody@127.0.0.1:1/none", "TASUKI_QUEUE": "other", "TASUKI_LOG_LEVEL": "debug"}
    done = demo("--dsn", dsn, "--folder", folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("speed-up: ")


def test_folder_without_python_is_a_usage_error(dsn: str, tmp_path: Path) -> None:
    done = demo("--dsn", dsn, "--folder", tmp_path)
    assert done.returncode == 2
    assert "holds no Python source" in done.stderr


def test_terminal_gets_a_bar_and_the_table(dsn: str, folder: Path) -> None:
    terminal, its_end = os.openpty()
    command = [sys.executable, "-m", "tasuki_mp", "demo", "--dsn", dsn, "--folder", str(folder)]
    with subprocess.Popen(
        command, stdout=its_end, stderr=its_end, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    ) as process:
        os.close(its_end)
        shown = b""
        try:
            while chunk := os.read(terminal, 65_536):
                shown += chunk
        except OSError:  # EIO: nobody has the other end open any more
            pass
        os.close(terminal)
        assert process.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert f"{GOOD + len(BAD)}/{GOOD + len(BAD)}" in text
    assert "the ten most complex functions" in text
    assert re.search(r"^speed-up: \d+\.\d\d\r?$", text, re.MULTILINE)
