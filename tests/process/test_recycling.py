"""When a child is replaced; until the one that takes its place stands ready, it works on."""

from __future__ import annotations

from collections.abc import Iterator
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


FIRST = """
import os, threading
from tasuki_mp import Tasuki
app = Tasuki()
kept = []

@app.resource
def opened():
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]

def leave(threads, descriptors):
    for _ in range(threads):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    kept.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(descriptors))
    return os.getpid()

@app.handler
def plain(threads: int = 0, descriptors: int = 0):
    return leave(threads, descriptors)

@app.handler
def with_resource(opened, threads: int = 0, descriptors: int = 0):
    return leave(threads, descriptors)
"""


@pytest.fixture
def first(dsn: str, tmp_path: Path) -> Iterator[Supervised]:
    """A supervisor with one slot, whose child has run nothing."""
    tmp_path.joinpath("first_app.py").write_text(FIRST, encoding="utf-8")
    with Supervised(dsn, "--poll", "20ms", "--app-dir", str(tmp_path), app="first_app:app") as supervised:
        supervised.started()
        yield supervised
        assert supervised.stop() == 0


@pytest.mark.parametrize(
    ("left", "reason"),
    [({"threads": 40}, "leaked 40 threads"), ({"descriptors": 80}, "leaked 80 file descriptors")],
    ids=["threads", "descriptors"],
)
def test_a_handlers_first_job_in_a_child_may_not_leave_all_it_likes(
    first: Supervised, conn: Conn, left: dict[str, int], reason: str
) -> None:
    row = jobs.wait_final(conn, jobs.add(conn, handler="plain", payload=left))
    first.event("child is replaced", reason=reason)
    wait_gone(row["result"])


def test_what_first_imports_and_resources_keep_open_costs_no_child(first: Supervised, conn: Conn) -> None:
    def run(handler: str, **payload: int) -> int:
        return int(jobs.wait_final(conn, jobs.add(conn, handler=handler, payload=payload))["result"])

    pid = run("plain", threads=20, descriptors=30)
    assert {run("with_resource", threads=20, descriptors=30), *(run("plain") for _ in range(5))} == {pid}
