"""What a supervisor says at its start, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasuki_mp import Client
from tasuki_mp.config import ExitCode
from tasuki_mp.supervisor import tree
from tests.support import invariants, jobs, leaks
from tests.support.door import Door
from tests.support.holder import Holder
from tests.support.hooked import Supervised
from tests.support.postgres import with_database
from tests.support.versions import widen
from tests.support.waiting import wait_until
from tests.system.conftest import Tasuki

Conn = psycopg.Connection[Any]


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


def test_a_queue_without_a_handler_is_warned_of(dsn: str) -> None:
    with Supervised(dsn, "--queue", "default", "--queue", "defualt", "--drain") as supervised:
        warned = supervised.event("no handler of this application is in that queue")
        assert (warned["level"], warned["queue"]) == ("warning", "defualt")
        assert supervised.wait() == ExitCode.OK
        assert "no handler of this application is in that queue" not in [event["event"] for event in supervised.rest()]


def test_another_application_with_a_handler_of_the_same_name_is_warned_of(dsn: str) -> None:
    said = "another application has handlers of the same name"
    shop = "tests.support.shop:app"
    with Supervised(dsn, app=shop) as first, Holder(dsn) as other:
        first.started()
        other.register(app="bank:app", handlers=["scale", "thumbnail", "pay"], host="there")
        with Supervised(dsn, "--drain", app=shop) as second:
            warned = second.event(said)
            assert (warned["level"], warned["handlers"]) == ("warning", "scale,thumbnail")
            assert (warned["app"], warned["host"]) == ("bank:app", "there")
            assert second.wait() == ExitCode.OK
            assert said not in [event["event"] for event in second.rest()], "once, and not of itself"
        assert first.stop() == ExitCode.OK
        assert said not in [event["event"] for event in first.rest()], "it was there before"


def test_nobody_else_gets_to_the_forkservers_socket(dsn: str) -> None:
    """Whoever could connect to it would have code run (CVE-2022-42919)."""
    with Supervised(dsn) as supervised:
        supervised.started()
        started = [each.pid for each in leaks.tagged(supervised.tag) if "multiprocessing.forkserver" in each.command]
        (pid,) = set(started) & set(tree.children(supervised.pid))
        inodes = set(
            re.findall(r"socket:\[(\d+)\]", " ".join(os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()))
        )
        known = [line.split() for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]]
        paths = {words[7] for words in known if words[6] in inodes and len(words) > 7}
        assert paths
        for path in map(Path, paths):
            assert path.is_absolute(), "an abstract one has no permissions"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert supervised.stop() == ExitCode.OK


def test_supervisors_of_two_versions_run_side_by_side(dsn: str, conn: Conn) -> None:
    """One has been at work since before the migration, the other one comes after it. Both do all they can do."""
    with Door() as door, Supervised(dsn, "--poll", "50ms") as old:
        held = jobs.add(conn, handler="hold", payload={"door": door.path})
        visitors = [door.visitor()]
        widen(conn)
        with Supervised(dsn, "--poll", "50ms") as new, Client(dsn) as client:
            more = [jobs.add(conn, handler="hold", payload={"door": door.path})]
            visitors.append(door.visitor())
            assert [visitor.job for visitor in visitors] == [held, *more]
            visitors[1].tell("raise once")
            wait_until(lambda: jobs.history(conn, more[0]), "a retry")
            visitors[0].tell("return kept")
            assert jobs.wait_final(conn, held)["result"] == "kept"
            assert client.cancel(more) == {more[0]: "canceled"}
            copies = list(client.retry(more).copies.values())
            door.visitor().tell("return again")
            assert jobs.wait_final(conn, copies[0])["result"] == "again"
            for supervised in (old, new):
                assert supervised.stop() == ExitCode.OK
                assert not [event for event in supervised.rest() if event.get("level") in {"error", "critical"}]
    invariants.check(conn)
