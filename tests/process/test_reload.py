"""`run --reload`: what is saved is what runs next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from tests.support import jobs
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_for_row

Conn = psycopg.Connection[Any]

APP = """
from tasuki_mp import Tasuki
from words import WORD

app = Tasuki()

@app.handler
def say() -> str:
    return WORD
"""


def supervise(dsn: str, folder: Path, app: str = "edited:app") -> Supervised:
    return Supervised(dsn, "--app-dir", str(folder), "--poll", "20ms", "--reload", app=app, procs=2)


def edit(supervised: Supervised, path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    event = supervised.event("the code has changed, children are replaced")
    assert path.name in event["files"]


def test_a_change_is_what_runs_next_and_a_broken_one_waits_for_the_next(dsn: str, conn: Conn, tmp_path: Path) -> None:
    words = tmp_path / "words.py"
    tmp_path.joinpath("edited.py").write_text(APP, encoding="utf-8")
    words.write_text("WORD = 'one'", encoding="utf-8")
    with supervise(dsn, tmp_path) as supervised:
        supervised.started()
        assert jobs.wait_final(conn, jobs.add(conn, handler="say"))["result"] == "one"

        edit(supervised, words, "WORD = 'two'")
        assert jobs.wait_final(conn, jobs.add(conn, handler="say"))["result"] == "two"

        edit(supervised, words, "WORD = 'three")
        shown = supervised.event("the application could not be imported, waiting for the next change")["traceback"]
        assert "words.py" in shown
        assert "SyntaxError" in shown
        waiting = jobs.add(conn, handler="say")
        row = jobs.live(conn, waiting)
        assert row is not None
        assert row["attempt"] == 0

        edit(supervised, words, "WORD = 'four'")
        row = jobs.wait_final(conn, waiting)
        assert (row["result"], row["attempt"]) == ("four", 1)
        assert supervised.stop() == 0


def test_a_handler_that_is_new_is_known_at_once(dsn: str, conn: Conn, tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    tmp_path.joinpath("words.py").write_text("WORD = 'hello'", encoding="utf-8")
    path.write_text(APP, encoding="utf-8")
    with supervise(dsn, tmp_path) as supervised:
        supervised.started()
        job_id = jobs.add(conn, handler="shout", queue="loud")

        edit(supervised, path, APP + "\n@app.handler(queue='loud')\ndef shout() -> str:\n    return WORD.upper()\n")

        assert jobs.wait_final(conn, job_id)["result"] == "HELLO"
        assert conn.execute("SELECT queues, handlers FROM tasuki.supervisor").fetchone() == (
            ["default", "loud"],
            ["say", "shout"],
        )
        assert supervised.stop() == 0


def test_a_running_job_ends_with_the_code_that_it_began_with(dsn: str, conn: Conn, tmp_path: Path) -> None:
    app = tmp_path / "held.py"
    app.write_text("from tests.support.door import app\n", encoding="utf-8")
    with Door() as door, supervise(dsn, tmp_path, "held:app") as supervised:
        supervised.started()
        jobs.add(conn, handler="hold", payload={"door": door.path})
        before = door.visitor()

        edit(supervised, app, "from tests.support.door import app\n\n")
        jobs.add(conn, handler="hold", payload={"door": door.path})
        after = door.visitor()
        assert after.pid != before.pid
        for visitor in (before, after):
            visitor.tell("return unharmed")
            row = jobs.wait_final(conn, visitor.job)
            assert (row["result"], row["attempt"]) == ("unharmed", 1)
        assert supervised.stop() == 0


def test_an_application_that_is_broken_at_first_is_waited_for(dsn: str, conn: Conn, tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    path.write_text("import no_such_module", encoding="utf-8")
    with supervise(dsn, tmp_path) as supervised:
        supervised.event("the application could not be imported, waiting for the next change")
        tmp_path.joinpath("words.py").write_text("WORD = 'at last'", encoding="utf-8")
        path.write_text(APP, encoding="utf-8")
        supervised.started()
        assert jobs.wait_final(conn, jobs.add(conn, handler="say"))["result"] == "at last"
        assert supervised.stop() == 0


def test_a_schedule_that_is_new_ticks_at_once(dsn: str, conn: Conn, tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    tmp_path.joinpath("words.py").write_text("WORD = 'hello'", encoding="utf-8")
    path.write_text(APP, encoding="utf-8")
    with supervise(dsn, tmp_path) as supervised:
        supervised.started()
        edit(supervised, path, APP + "\n@app.schedule('every 1s')\ndef chime() -> str:\n    return WORD\n")
        wait_for_row(conn, "SELECT 1 FROM tasuki.job_archive WHERE handler = 'chime' AND result = '\"hello\"'")
        assert conn.execute("SELECT schedules FROM tasuki.supervisor").fetchone() == (["chime"],)
        assert supervised.stop() == 0
