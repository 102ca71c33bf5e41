"""What commands show in a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tasuki_mp import cli
from tests.support import jobs
from tests.support.waiting import wait_for_row, wait_gone, wait_readable

Connection = psycopg.Connection[Any]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What moves the cursor and sets colours."""


class Terminal:
    """A program in a terminal, and what it has shown so far."""

    def __init__(self, process: subprocess.Popen[str], controller: int) -> None:
        self.process = process
        self._controller = controller
        self.shown = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # a read may end inside a character

    def wait_for(self, text: str) -> None:
        """Read until the text is shown; what was shown before is forgotten."""
        self.shown = ""
        while text not in ESCAPES.sub("", self.shown):
            assert self._read(), f"{text!r} was never shown, but {self.shown!r}"

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._controller, text.encode())

    def read_all(self) -> str:
        """Everything until the program closes the terminal."""
        while self._read():
            pass
        return self.shown

    def _read(self) -> bool:
        wait_readable(self._controller)
        try:
            data = os.read(self._controller, 65_536)
        except OSError:  # the other end is closed
            return False
        self.shown += self._decode(data)
        return bool(data)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    controller, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasuki_mp", *arguments],
        stdin=end,
        stdout=end,
        stderr=end,
        text=True,
        env={**env, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(end)
    try:
        yield Terminal(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_status_fits_the_window_and_keeps_its_numbers(dsn: str, conn: Connection) -> None:
    jobs.add(conn, queue="a-queue-with-a-name-that-is-much-too-long-for-a-terminal", handler="h" * 100)
    with terminal("status", "--dsn", dsn) as screen:
        shown = screen.read_all()
        assert screen.process.wait() == 0
    assert "\x1b[" in shown
    lines = ESCAPES.sub("", shown).splitlines()
    assert max(len(line) for line in lines) <= 80
    [queue] = [line for line in lines if line.startswith("a-queue-with")]
    assert queue.split()[1:8] == ["1", "0", "0", "0", "0", "0", "0"]
    assert [line.split()[-1] for line in lines if line.startswith("hhh")] == ["1"]


def test_a_watch_survives_a_lost_connection_and_ends_quietly_by_ctrl_c(dsn: str, conn: Connection) -> None:
    with terminal("status", "--watch", "--every", "100ms", "--dsn", dsn) as screen:
        screen.wait_for("start `tasuki-mp run`")
        jobs.add(conn, queue="images", handler="h")
        screen.wait_for("images")
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tasuki-mp status'"
        )
        screen.wait_for("trying again")
        screen.wait_for("images")
        screen.process.send_signal(signal.SIGINT)
        rest = ESCAPES.sub("", screen.read_all())
        wait_gone(screen.process.pid)
        assert screen.process.wait() == cli.INTERRUPTED
    assert "Traceback" not in rest
    assert "Interrupt" not in rest


def test_which_database_it_is_goes_beside_the_result(dsn: str) -> None:
    with terminal("enqueue", "h", "--queue", "q", "--dsn", dsn) as screen:
        first, second = screen.read_all().splitlines()
        assert screen.process.wait() == 0
    assert first.startswith("database tasuki_test_")
    assert second.isdecimal()


def test_a_person_is_asked_before_many_jobs_are_changed(dsn: str, conn: Connection) -> None:
    jobs.fill(conn, 3)
    for answer, left in (("n", 3), ("y", 0)):
        with terminal("cancel", "--queue", "default", "--dsn", dsn) as screen:
            screen.wait_for("cancel 3 jobs? [y/N]:")
            screen.type(f"{answer}\n")
            shown = screen.read_all()
            assert screen.process.wait() == 0
        assert ("nothing was done" in shown) == (left == 3)
        assert len(conn.execute("SELECT FROM tasuki.job").fetchall()) == left
    with terminal("delete", "--queue", "default", "--yes", "--dsn", dsn) as screen:
        assert "deleted: 3 jobs" in screen.read_all()


def test_a_person_is_told_that_a_file_has_no_jobs(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    file.touch()
    with terminal("enqueue", "h", "--file", str(file), "--queue", "q", "--wait", "--dsn", dsn) as screen:
        assert "0 jobs enqueued in" in screen.read_all()
        assert screen.process.wait() == 0


def test_a_person_sees_how_far_it_is_and_may_stop_waiting(dsn: str, conn: Connection, tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    file.write_text("{}\n" * 3)
    with terminal("enqueue", "h", "--file", str(file), "--queue", "q", "--wait", "--dsn", dsn) as screen:
        screen.wait_for("3 jobs enqueued")
        screen.wait_for("waiting")
        screen.wait_for("0 of 3")
        (job_id,) = conn.execute("SELECT min(id) FROM tasuki.job").fetchone() or (0,)
        jobs.cancel(conn, job_id)
        screen.wait_for("1 of 3")
        screen.process.send_signal(signal.SIGINT)
        rest = ESCAPES.sub("", screen.read_all())
        assert screen.process.wait() == cli.INTERRUPTED
    assert "Traceback" not in rest
    assert len(conn.execute("SELECT FROM tasuki.job").fetchall()) == 2


def test_ctrl_c_in_the_middle_of_a_file_leaves_nothing_behind(dsn: str, conn: Connection) -> None:
    with terminal("enqueue", "h", "--file", "-", "--queue", "q", "--chunk", "2", "--dsn", dsn) as screen:
        screen.wait_for("database")
        screen.type("{}\n{}\n{}\n")
        wait_for_row(conn, "SELECT 1 FROM tasuki.job HAVING count(*) = 2")
        screen.process.send_signal(signal.SIGINT)
        rest = ESCAPES.sub("", screen.read_all())
        assert screen.process.wait() == cli.INTERRUPTED
    assert "Traceback" not in rest
    assert len(conn.execute("SELECT FROM tasuki.job").fetchall()) == 2
