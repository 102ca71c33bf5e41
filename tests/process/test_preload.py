"""What children have in common, imported once, and what tells their slots apart."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import ExitCode
from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_gone

Conn = psycopg.Connection[Any]

APP = """
import gc, os, socket, sys
from tasuki_mp import Tasuki

sys.path.append(os.path.join(os.path.dirname(__file__), "lib"))

app = Tasuki()

@app.handler(max_attempts=1)
def look(door: str = "") -> dict:
    if door:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(door)
            sock.sendall(b'{"pid": %d, "job": 0, "lease_no": 0, "attempt": 0}\\n' % os.getpid())
            sock.recv(64)
    models = sys.modules.get("pkg.models")
    return {
        "pid": os.getpid(), "parent": os.getppid(), "loaded": models and models.LOADED_BY,
        "frozen": gc.get_freeze_count(), "gpu": os.environ.get("GPU"),
    }

@app.handler(max_attempts=1)
def import_late() -> list:
    import beside, elsewhere
    return [beside.__file__, elsewhere.__file__]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.joinpath("app.py").write_text(APP, encoding="utf-8")
    tmp_path.joinpath("pkg").mkdir()
    tmp_path.joinpath("pkg", "models.py").write_text("import os\nLOADED_BY = os.getpid()\n", encoding="utf-8")
    tmp_path.joinpath("pkg", "broken.py").write_text("import os\nraise RuntimeError('not today')\n", encoding="utf-8")
    return tmp_path


def supervise(dsn: str, folder: Path, *options: str, procs: int = 1) -> Supervised:
    return Supervised(dsn, "--app-dir", str(folder), "--poll", "20ms", *options, app="app:app", procs=procs)


def look(conn: Conn) -> dict[str, Any]:
    row = jobs.wait_final(conn, jobs.add(conn, handler="look"))
    assert row["status"] == "completed", row["error"]
    result: dict[str, Any] = row["result"]
    return result


def test_a_preloaded_module_is_imported_once_and_frozen(dsn: str, conn: Conn, folder: Path) -> None:
    with supervise(dsn, folder, "--preload", "pkg.models", "--preload", "json") as supervised:
        supervised.started()
        first = look(conn)
        os.kill(first["pid"], signal.SIGKILL)
        wait_gone(first["pid"])
        second = look(conn)
        assert first["pid"] != second["pid"]
        assert first["loaded"] == second["loaded"] == first["parent"], "by the forkserver"
        assert first["frozen"] > 1000
        assert supervised.stop() == 0


@pytest.mark.parametrize("preload", ["--preload=json", "--no-preload"])
def test_a_handler_can_import_what_its_application_could(dsn: str, conn: Conn, folder: Path, preload: str) -> None:
    folder.joinpath("lib").mkdir()
    late = [folder / "beside.py", folder / "lib" / "elsewhere.py"]
    for file in late:
        file.touch()
    with supervise(dsn, folder, preload) as supervised:
        row = jobs.wait_final(conn, jobs.add(conn, handler="import_late"))
        assert row["result"] == [str(file) for file in late], row["error"]
        assert supervised.stop() == 0


@pytest.mark.parametrize("option", ["--no-preload", "--preload=pkg.broken", "--preload=no.such"])
def test_what_cannot_be_preloaded_is_an_error_at_the_start(dsn: str, conn: Conn, folder: Path, option: str) -> None:
    with supervise(dsn, folder, option) as supervised:
        if option == "--no-preload":
            supervised.started()
            assert look(conn)["loaded"] is None
            assert supervised.stop() == 0
            return
        assert supervised.wait() == ExitCode.APP
        log = "\n".join(supervised.further_lines())
    assert ("RuntimeError: not today" if "broken" in option else "No module named 'no'") in log


@pytest.mark.parametrize("preload", ["--preload=json", "--no-preload"])
def test_each_slot_has_its_own_value_also_after_a_death(dsn: str, conn: Conn, folder: Path, preload: str) -> None:
    with Door() as door, supervise(dsn, folder, preload, "--slot-env", "GPU=zero,one", procs=2) as supervised:
        supervised.started()
        for _ in range(2):
            ids = [jobs.add(conn, handler="look", payload={"door": door.path}) for _ in range(2)]
            for visitor in [door.visitor(), door.visitor()]:
                visitor.tell("go on")
            rows = [jobs.wait_final(conn, job_id) for job_id in ids]
            assert {(row["usage"]["slot"], row["result"]["gpu"]) for row in rows} == {(0, "zero"), (1, "one")}
            os.kill(rows[0]["result"]["pid"], signal.SIGKILL)
            wait_gone(rows[0]["result"]["pid"])
        assert supervised.stop() == 0


def test_too_few_values_for_the_slots_are_refused(dsn: str, folder: Path) -> None:
    with supervise(dsn, folder, "--slot-env", "GPU=0,1", procs=3) as supervised:
        assert supervised.wait() == ExitCode.USAGE
        log = "\n".join(supervised.further_lines())
    assert "slot-env: GPU has 2 values for 3 slots" in log
