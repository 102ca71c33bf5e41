"""A child that is replaced works on until the one that takes its place stands ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import invariants, jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_gone, wait_until

Conn = psycopg.Connection[Any]

APP = """
import os, socket, threading
from tasuki_mp import Tasuki
app = Tasuki(version="3")
kept = []

@app.resource(eager=True)
def slow_start():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ["TEST_DOOR"])
        sock.sendall(b'{"pid": %d, "job": 0, "lease_no": 0, "attempt": 0}\\n' % os.getpid())
        sock.recv(1)

@app.handler
def pid(leak: str = ""):
    if leak == "threads":
        for _ in range(40):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
    if leak == "memory" and len(kept) < 2:
        kept.append(b"x" * (200 << 20 if kept else 1))
    return os.getpid()
"""


@pytest.mark.parametrize(
    ("options", "leak"),
    [
        (("--max-jobs-per-child", "2"), ""),
        (("--max-child-age", "1s"), ""),
        ((), "threads"),
        ((), "memory"),
    ],
    ids=["jobs", "age", "threads", "memory"],
)
def test_the_replacement_is_ready_before_the_old_child_goes(
    dsn: str, conn: Conn, tmp_path: Path, options: tuple[str, ...], leak: str
) -> None:
    tmp_path.joinpath("slow_app.py").write_text(APP, encoding="utf-8")

    def run() -> int:
        row = jobs.wait_final(conn, jobs.add(conn, handler="pid", payload={"leak": leak}))
        assert row["usage"]["version"] == "3"
        return int(row["result"])

    with (
        Door() as door,
        Supervised(
            dsn,
            *options,
            "--poll",
            "20ms",
            "--app-dir",
            str(tmp_path),
            app="slow_app:app",
            env={"TEST_DOOR": door.path},
        ) as supervised,
    ):
        first = door.visitor()
        first.tell("go")
        assert run() == first.pid
        while True:  # until there is a reason to replace it
            assert run() == first.pid
            try:
                second = door.visitor(timeout=0.2)
                break
            except AssertionError:
                continue
        assert [run() for _ in range(3)] == [first.pid] * 3, "it works on"
        second.tell("go")
        wait_until(lambda: run() == second.pid, "the new child's turn")
        wait_gone(first.pid)
        assert supervised.stop() == 0, "while perhaps another one is coming"
    invariants.check(conn)
