"""`tasuki-mp replay`: a stored job in the foreground, with its payload and checkpoint, its row untouched."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support import jobs
from tests.support.program import Program

Conn = psycopg.Connection[tuple[Any, ...]]
APP = "tests.support.everyday:app"


def _replay(dsn: str, *arguments: str, say: str = "") -> tuple[int, list[str]]:
    with Program("-m", "tasuki_mp", "replay", *arguments, env={"TASUKI_DSN": dsn}, stderr=subprocess.STDOUT) as program:
        if say:
            program.say(say)
        code = program.wait()
        return code, program.further_lines()


def test_a_pending_job_runs_here_and_stays_as_it_is(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="later", payload={"text": "wörds"})
    before = jobs.live(conn, job_id)
    code, lines = _replay(dsn, str(job_id), "--app", APP)
    assert code == 0
    assert lines[0].startswith("returned after")
    assert lines[1] == '"wörds"'
    assert jobs.live(conn, job_id) == before


def test_an_application_that_is_not_there_is_named_and_no_machinery_shown(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="later", payload={"text": "words"})
    code, lines = _replay(dsn, str(job_id), "--app", "nosuch:app")
    assert code == 5
    assert lines == [
        "tasuki-mp: the application 'nosuch:app' could not be imported:",
        "ModuleNotFoundError: No module named 'nosuch'",
    ]


def test_what_it_raises_is_shown_from_the_handler_on(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="picky", payload={"error": "ValueError"})
    code, lines = _replay(dsn, str(job_id), "--app", APP)
    assert code == 1
    assert "everyday.py" in lines[1]
    assert lines[-2] == "ValueError: ValueError"
    assert lines[-1].startswith("raised ValueError after")


def test_the_debugger_stands_where_it_was_raised(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="picky", payload={"error": "OSError"})
    code, lines = _replay(dsn, str(job_id), "--app", APP, "--pdb", say="p 'the error is ' + error\nq\n")
    assert code == 1
    assert any("the error is OSError" in line for line in lines)


def test_the_context_has_the_attempt_and_the_checkpoint(dsn: str, conn: Conn) -> None:
    job_id = jobs.add(conn, handler="ask", payload={"what": "nothing"}, attempt=2, lease_no=7)
    code, lines = _replay(dsn, str(job_id), "--app", APP)
    assert code == 0
    assert '"attempt":2' in lines[-1]
    assert '"lease_no":7' in lines[-1]


@pytest.mark.parametrize("limits", [None, {"cpus": 3}, {"memory": 2**30}])
@pytest.mark.parametrize("handler", ["look", "look_wide"])
def test_native_libraries_get_the_threads_that_the_job_has_units(
    dsn: str, conn: Conn, handler: str, limits: dict[str, int] | None
) -> None:
    job_id = jobs.add(conn, handler=handler, **({} if limits is None else {"limits": Jsonb(limits)}))
    code, lines = _replay(dsn, str(job_id), "--app", "tests.support.native:app")
    assert code == 0
    cpus = (limits or {}).get("cpus", 2 if handler == "look_wide" else 1)
    seen = json.loads(lines[-1])
    assert (seen["cpus"], seen["pools"], seen["numexpr"], seen["environment"]) == (cpus, [cpus], cpus, [str(cpus)])


def test_mistakes_are_said_in_one_line(dsn: str, conn: Conn) -> None:
    assert _replay(dsn, "99", "--app", APP) == (1, ["tasuki-mp: there is no job 99"])
    job_id = jobs.add(conn, handler="nobody's")
    code, (line,) = _replay(dsn, str(job_id), "--app", APP)
    assert (code, 'has no handler "nobody\'s"' in line) == (2, True)
    job_id = jobs.add(conn, handler="later", limits=Jsonb({"cpus": "many"}))
    code, (line,) = _replay(dsn, str(job_id), "--app", APP)
    assert (code, f"tasuki-mp: job {job_id}: its limits can't be used" in line) == (1, True)
    job_id = jobs.add(conn, handler="later", payload={"colour": "red"})
    code, (line,) = _replay(dsn, str(job_id), "--app", APP)
    assert (code, f"tasuki-mp: job {job_id}: handler 'later'" in line) == (1, True)
