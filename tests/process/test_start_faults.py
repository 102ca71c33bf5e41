"""Children that do not come up: their jobs wait or go elsewhere, and none of it counts against a job."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import ExitCode
from tests.support import invariants, jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import NotInTimeError, wait_gone, wait_readable

Conn = psycopg.Connection[Any]

APP = """
import os, signal, sys
from pathlib import Path
from tasuki_mp import Tasuki

FOLDER = Path(os.environ["TEST_FOLDER"])
app = Tasuki()

@app.handler
def pid() -> int:
    return os.getpid()

for broken in sorted(FOLDER.glob("die-*"))[:1]:
    how = broken.read_text()
    if not how.startswith("for ever"):
        broken.unlink()
    if "raise" in how:
        raise RuntimeError("not today")
    if "exit" in how:
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("fragile.py").write_text(APP, encoding="utf-8")
    return tmp_path


def supervise(dsn: str, folder: Path, *options: str, procs: int = 1) -> Supervised:
    return Supervised(
        dsn,
        *("--app-dir", str(folder), "--poll", "20ms", *options),
        app="fragile:app",
        procs=procs,
        env={"TEST_FOLDER": str(folder)},
    )


@pytest.mark.parametrize("how", ["kill", "exit", "raise"])
def test_an_import_that_fails_now_and_then_costs_no_job_anything(dsn: str, conn: Conn, folder: Path, how: str) -> None:
    with supervise(dsn, folder, "--no-preload") as supervised:
        supervised.started()
        first = jobs.wait_final(conn, jobs.add(conn, handler="pid"))["result"]
        for number in range(2):
            folder.joinpath(f"die-{number}").write_text(how, encoding="ascii")
        job_id = jobs.add(conn, handler="pid", max_attempts=1)
        os.kill(first, signal.SIGKILL)

        supervised.event("child did not start")
        row = jobs.wait_final(conn, jobs.add(conn, handler="pid", max_attempts=1))

        assert (row["status"], row["attempt"], row["crashes"]) == ("completed", 1, 0)
        assert jobs.wait_final(conn, job_id)["attempt"] == 1
        assert list(folder.glob("die-*")) == []
        assert supervised.stop() == 0
    invariants.check(conn)


@pytest.mark.parametrize(
    ("how", "preload"),
    [
        ("kill", "--preload=json"),
        ("exit", "--preload=json"),
        ("kill", "--no-preload"),
        ("exit", "--no-preload"),
        ("raise", "--preload=json"),
        ("raise", "--no-preload"),
    ],
)
def test_an_application_whose_import_always_fails_is_given_up(
    dsn: str, conn: Conn, folder: Path, how: str, preload: str
) -> None:
    folder.joinpath("die-0").write_text(f"for ever: {how}", encoding="ascii")
    job_id = jobs.add(conn, handler="pid")

    with supervise(dsn, folder, preload, procs=2) as supervised:
        assert supervised.wait() == ExitCode.APP
        log = "\n".join(supervised.further_lines())

    assert "fragile:app" in log
    said = {"kill": "killed by SIGKILL", "exit": "ended with exit code 3"}.get(how)
    assert ("RuntimeError: not today" in log) == (said is None)
    assert said is None or f"the process died ({said}) while it imported fragile:app" in log
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["attempt"]) == ("pending", 0)
    invariants.check(conn, [job_id])


@pytest.mark.parametrize(
    ("options", "app", "words"),
    [
        (
            ("--preload", "json", "--preload", "nosuch.mod"),
            "door:app",
            "the module 'nosuch.mod' of --preload could not",
        ),
        ((), "nosuch:app", "the application 'nosuch:app' could not be imported:"),
    ],
)
def test_what_could_not_be_imported_is_named_without_the_machinery(
    dsn: str, options: tuple[str, ...], app: str, words: str
) -> None:
    with Supervised(dsn, *options, app=f"tests.support.{app}" if app == "door:app" else app) as supervised:
        assert supervised.wait() == ExitCode.APP
        complaint = supervised.event("ended by an error")["error"]

    assert words in complaint
    assert complaint.endswith("ModuleNotFoundError: No module named 'nosuch'")
    assert "importlib" not in complaint
    assert "Traceback" not in complaint


APP_AT_THE_DOOR = """
import os, socket
from tasuki_mp import Tasuki
app = Tasuki()

@app.handler
def pid() -> int:
    return os.getpid()

with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.environ["TEST_DOOR"])
    sock.sendall(b'{"pid": %d, "job": 0, "lease_no": 0, "attempt": 0}\\n' % os.getpid())
    sock.recv(1)
"""


def test_a_child_killed_before_its_hello_is_replaced(dsn: str, conn: Conn, tmp_path: Path) -> None:
    tmp_path.joinpath("slow.py").write_text(APP_AT_THE_DOOR, encoding="utf-8")
    options = ("--no-preload", "--app-dir", str(tmp_path), "--poll", "20ms")
    job_id = jobs.add(conn, handler="pid", max_attempts=1)
    with Door() as door, Supervised(dsn, *options, app="slow:app", env={"TEST_DOOR": door.path}) as supervised:
        victim = door.visitor()
        victim.signal(signal.SIGKILL)
        wait_gone(victim.pid)
        supervised.event("child did not start", failures=1)

        # A spare may come to the door as well, where importing takes its time.
        row = None
        while row is None:
            door.visitor().tell("go on")
            supervised.event("child ready")
            row = jobs.wait_final(conn, job_id)

        assert (row["status"], row["attempt"], row["crashes"]) == ("completed", 1, 0)
        assert row["result"] != victim.pid


def test_it_does_not_leave_before_children_that_are_being_born(
    dsn: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("slow.py").write_text(APP_AT_THE_DOOR, encoding="utf-8")
    options = ("--drain", "--no-preload", "--app-dir", str(tmp_path))
    mutant = "all the time for the unborn"
    with (
        Door() as door,
        Supervised(dsn, *options, app="slow:app", procs=2, mutant=mutant, env={"TEST_DOOR": door.path}) as supervised,
    ):
        door.visitor().tell("go on")
        unborn = [door.visitor() for _ in ("the second slot's", "the spare")]
        supervised.event("stopped")
        with pytest.raises(NotInTimeError):
            wait_readable(supervised.pidfd, timeout=0.2)
        for visitor in unborn:
            visitor.tell("go on")
        assert supervised.wait() == ExitCode.OK
        for visitor in unborn:
            wait_gone(visitor.pid)
    assert "Traceback" not in capfd.readouterr().err


FEW_DESCRIPTORS = (
    "-c",
    """import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.execv(sys.argv[1], sys.argv[1:])""",
)


def test_too_few_descriptors_for_all_children_leave_it_working(dsn: str, conn: Conn) -> None:
    ids = jobs.fill(conn, 100, handler="note")
    with Supervised(dsn, "--poll", "20ms", procs=16, launcher=(*FEW_DESCRIPTORS, sys.executable)) as short:
        short.started()
        for _ in range(20):
            assert "open files" in short.event("child did not start")["reason"]
            assert len(os.listdir(f"/proc/{short.pid}/fd")) <= 64 - 8, "some are left for whatever else it does"

        for job_id in ids:
            assert jobs.wait_final(conn, job_id)["attempt"] == 1

        assert short.stop() == 0
    invariants.check(conn, ids)


FEW_PROCESSES = (
    "-c",
    """import ctypes, os, resource, sys
for capability in (21, 24):  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE: without them the limit holds
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.setresuid(int(sys.argv[1]), 0, 0)  # whose processes are counted; what may be read stays as it was
resource.setrlimit(resource.RLIMIT_NPROC, (40, 40))
os.execv(sys.argv[2], sys.argv[2:])""",
)
"""Launches the program as one that may have no more than a few processes; threads count as such."""


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel counts everything that runs for this user")
def test_too_few_processes_for_all_children_leave_it_working(dsn: str, conn: Conn) -> None:
    ids = jobs.fill(conn, 100, handler="note")
    launcher = (*FEW_PROCESSES, str(200_000 + os.getpid()), sys.executable)
    with Supervised(dsn, "--poll", "20ms", procs=16, launcher=launcher) as short:
        short.started()
        for _ in range(20):
            assert "processes" in short.event("child did not start")["reason"]

        for job_id in ids:
            row = jobs.wait_final(conn, job_id)
            assert (row["status"], row["attempt"]) == ("completed", 1)

        assert short.stop() == 0
        assert not any("died" in event["event"] for event in short.rest())
    invariants.check(conn, ids)
