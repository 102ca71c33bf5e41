"""What a supervisor says at its start, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasuki_mp.config import ExitCode
from tests.support.hooked import Supervised
from tests.support.postgres import with_database
from tests.system.conftest import Tasuki


def test_every_line_of_a_log_in_json_is_json(empty_dsn: str) -> None:
    with Supervised(empty_dsn) as supervised:
        supervised.started()
        assert supervised.stop() == ExitCode.OK
        supervised.rest()
        lines = [json.loads(line) for line in supervised.log]
    assert (lines[0]["event"], lines[1]["event"]) == ("tasuki-mp", "migration applied")
    assert lines[-1]["event"] == "stopped"


def test_so_is_the_error_that_ends_it(tasuki: Tasuki, dsn: str, tmp_path: Path) -> None:
    def last(*options: object) -> dict[str, Any]:
        ended = tasuki("run", "--log-format", "json", "--procs", 1, *options)
        lines: list[dict[str, Any]] = [json.loads(line) for line in ended.err.splitlines()]
        assert lines[-1]["event"] == "ended by an error"
        return {"code": ended.code, **lines[-1]}

    tmp_path.joinpath("broken.py").write_text("raise ValueError('no good')", encoding="utf-8")
    event = last("--dsn", dsn, "--app", "broken:app", "--app-dir", tmp_path)
    assert (event["code"], event["type"]) == (ExitCode.APP, "AppImportError")
    assert "ValueError: no good" in event["error"]

    event = last("--dsn", with_database(dsn, "nowhere"), "--app", "broken:app")
    assert (event["code"], event["type"]) == (ExitCode.DATABASE, "DatabaseError")


def test_a_server_that_nothing_proves_to_be_the_right_one_is_named(dsn: str) -> None:
    hosts = f"{conninfo_to_dict(dsn)['host']},db.example.com"  # the second is not asked if the first answers
    with Supervised(make_conninfo(dsn, host=hosts)) as supervised:
        warned = supervised.event("with sslmode=prefer nothing proves that db.example.com is the database's server")
        assert (warned["level"], warned["host"], warned["sslmode"]) == ("warning", "db.example.com", "prefer")
        supervised.started()
        assert supervised.stop() == ExitCode.OK
    with Supervised(dsn) as supervised:
        supervised.started()
        assert supervised.stop() == ExitCode.OK
        assert not [event for event in supervised.rest() if "proves" in event["event"]]
