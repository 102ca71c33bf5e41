"""Each command on a real database: what it prints, to people and to programs, and what it leaves there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tasuki_mp import sql
from tasuki_mp.config import ExitCode
from tasuki_mp.embedded import FOLDER_VARIABLE, MAJOR
from tests.support import jobs
from tests.support.postgres import Postgres
from tests.support.program import Program
from tests.support.waiting import wait_for_row
from tests.system.conftest import Tasuki

Connection = psycopg.Connection[Any]
SHOP = "tests.support.shop:app"
HOSTILE = "evil\x1b[31m[red]\x9b\nx"


def one(conn: Connection, query: str, *parameters: object) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row


def add_supervisor(conn: Connection, handlers: list[str]) -> UUID:
    owner = uuid4()
    conn.execute(
        """INSERT INTO tasuki.supervisor
             (owner, host, pid, pid_started, boot_id, pid_ns, version, procs, queues, handlers, lease_seconds)
           VALUES (%s, 'worker-1', 4711, 1, '', '', '0.1.0', 8, '{images}', %s, 60)""",
        (owner, handlers),
    )
    return owner


# ── migrate ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_migrate_says_what_it_applied(tasuki: Tasuki, empty_dsn: str) -> None:
    files = [migration.file_name for migration in sql.migrations()]
    missing = tasuki("migrate", "--check", "--dsn", empty_dsn)
    assert missing.code == ExitCode.DATABASE
    assert re.findall(r"^missing (.*)$", missing.out, re.MULTILINE) == files
    first = tasuki("migrate", "--dsn", empty_dsn)
    assert first.code == 0
    assert first.out.splitlines()[0].startswith("database tasuki_test_")
    assert re.findall(r"^applied (.*)$", first.out, re.MULTILINE) == files
    second = tasuki("migrate", "--dsn", empty_dsn)
    assert "applied" not in second.out
    assert f"the schema is up to date (version {len(files)})" in second.out
    assert tasuki("migrate", "--check", "--dsn", empty_dsn).code == 0


# ── enqueue ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def declare(conn: Connection) -> None:
    conn.execute(
        "INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('thumbnail', 'images', 1, 7)"
    )


def test_enqueue_takes_what_the_handler_declared(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    declare(conn)
    ended = tasuki("enqueue", "thumbnail", '{"path": "a.png"}', "--dsn", dsn)
    assert (ended.code, ended.err) == (0, "")
    row = jobs.live(conn, int(ended.out))
    assert row is not None
    assert (row["queue"], row["priority"], row["max_attempts"], row["payload"]) == ("images", 1, 7, {"path": "a.png"})


def test_enqueue_with_options(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    declare(conn)
    ended = tasuki(
        "enqueue", "thumbnail", "--queue", "other", "--priority", "3", "--after", "2h", "--json", "--dsn", dsn
    )
    query = "SELECT queue, priority, payload, scheduled_at - created_at > '119 min' FROM tasuki.job WHERE id = %s"
    assert one(conn, query, ended.json["id"]) == ("other", 3, {}, True)


def test_enqueue_at_an_instant(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    ended = tasuki("enqueue", "new", "--queue", "q", "--at", "2100-01-01T00:00+09:00", "--dsn", dsn)
    query = "SELECT scheduled_at = '2099-12-31 15:00+00' FROM tasuki.job WHERE id = %s"
    assert one(conn, query, int(ended.out)) == (True,)


def test_enqueue_of_a_handler_that_nobody_knows(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    ended = tasuki("enqueue", "typo", "--dsn", dsn)
    assert ended.code == ExitCode.USAGE
    assert "no handler named 'typo' is known to this database" in ended.err
    assert one(conn, "SELECT count(*) FROM tasuki.job") == (0,)


def test_enqueue_of_what_can_be_no_handler(tasuki: Tasuki) -> None:
    ended = tasuki("enqueue", "a\nb", "--queue", "default", "--dsn", "postgresql://127.0.0.1:1/x")
    assert ended.code == ExitCode.USAGE
    assert "'a\\nb' is no handler's name" in ended.err


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{path: 1}", "$: is no JSON"),
        ("[1]", "$: must be a JSON object"),
        ('{"a": [{"b": "\\u0000"}]}', "$.a[0].b: contains a NUL character"),
        ('{"a": NaN}', "$: is no JSON"),
        ('{"a": "\udcff"}', "the payload is not valid UTF-8"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nest"),
        ('{"a": ' + "[" * 9999, "$: is no JSON"),
        ('{"a": "' + "x" * 1_100_000 + '"}', "the limit is 1,048,576"),
    ],
    ids=["no JSON", "no object", "NUL", "NaN", "no UTF-8", "nested", "deeply nested", "large"],
)
@pytest.mark.parametrize("app", [[], ["--app", SHOP]], ids=["without app", "with app"])
def test_enqueue_refuses_a_payload_before_it_asks_the_database(
    tasuki: Tasuki, payload: str, message: str, app: list[str]
) -> None:
    ended = tasuki("enqueue", "thumbnail", payload, "--queue", "q", *app, "--dsn", "postgresql://127.0.0.1:1/x")
    assert ended.code == ExitCode.USAGE
    assert message in ended.err
    assert len(ended.err) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queue", "a b"], "--queue: 'a b' is no queue name"),
        (["--after", "soon"], "--after: 'soon' is no duration"),
        (["--at", "tomorrow"], "--at: 'tomorrow' is no time"),
        (["--at", "2027-01-01T00:00"], "has no time zone; write it like 2027-01-01T00:00+09:00"),
        (["--at", "2027-01-01"], "write it like 2027-01-01T00:00+09:00 or 2027-01-01T00:00Z"),
        (["--at", "2027-01-01T08"], "write it like 2027-01-01T08+09:00 or 2027-01-01T08Z"),
        (["--at", "2327-01-01T00:00Z"], "more than a hundred years"),
        (["--at", "2027-01-01T00:00Z", "--after", "1h"], "not both"),
        (["--priority", "4"], "4 is not in the range"),
    ],
)
def test_enqueue_refuses_options(tasuki: Tasuki, options: list[str], message: str) -> None:
    ended = tasuki("enqueue", "h", *options)
    assert ended.code == ExitCode.USAGE
    assert message in ended.err


@pytest.mark.parametrize("app", [[], ["--app", SHOP]], ids=["without app", "with app"])
def test_enqueue_refuses_numbers_that_jsonb_can_not_hold(tasuki: Tasuki, dsn: str, app: list[str]) -> None:
    handler, payload = ("scale", '{"by": 0.' + "0" * 20_000 + "1}")
    ended = tasuki("enqueue", handler, payload, "--queue", "q", *app, "--dsn", dsn)
    assert ended.code == ExitCode.USAGE
    assert "more digits than Postgres keeps" in ended.err


def test_enqueue_with_the_application_at_hand(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    ended = tasuki("enqueue", "thumbnail", '{"path": "a.png", "width": 3}', "--app", SHOP, "--dsn", dsn)
    row = jobs.live(conn, int(ended.out))
    assert row is not None
    assert (row["queue"], row["priority"], row["max_attempts"]) == ("images", 1, 7)
    for payload, message in (('{"path": 3}', "$.path: Expected `str`, got `int`"), ("{}", "$.path: missing")):
        wrong = tasuki("enqueue", "thumbnail", payload, "--app", SHOP, "--dsn", dsn)
        assert wrong.code == ExitCode.USAGE
        assert message in wrong.err
    unknown = tasuki("enqueue", "typo", "--app", SHOP, "--dsn", dsn)
    assert unknown.code == ExitCode.USAGE
    assert "it has break_down, scale, thumbnail" in unknown.err


def test_enqueue_with_an_application_that_can_not_be_imported(tasuki: Tasuki, tmp_path: Any) -> None:
    (tmp_path / "broken_shop.py").write_text("import no_such_module\n")
    ended = tasuki("enqueue", "h", "--app", "broken_shop:app", "--app-dir", tmp_path)
    assert ended.code == ExitCode.APP
    assert "No module named 'no_such_module'" in ended.err


# ── cancel ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_tells_what_came_of_each(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    owner = add_supervisor(conn, ["h"])
    waiting = jobs.add(conn, handler="h")
    running = jobs.add(conn, handler="h", status="running", owner=owner, lease_expires_at="2199-01-01", attempt=1)
    first = tasuki("cancel", waiting, running, waiting, "--dsn", dsn)
    assert first.code == 0
    assert re.findall(r"^ *(\d+)  (\w+)", first.out, re.MULTILINE) == [
        (str(waiting), "canceled"),
        (str(running), "runs"),
    ]
    assert jobs.status(conn, waiting) == "canceled"
    assert one(conn, "SELECT cancel_requested_at IS NOT NULL FROM tasuki.job WHERE id = %s", running) == (True,)
    second = tasuki("cancel", waiting, 2**60, "--json", "--dsn", dsn)
    assert second.code == ExitCode.FAILED
    assert second.json == {str(waiting): "finished", str(2**60): "unknown"}
    assert "there is no such job" in tasuki("cancel", 2**60, "--dsn", dsn).err


# ── status and show ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_of_nothing(tasuki: Tasuki, dsn: str) -> None:
    lines = tasuki("status", "--dsn", dsn).out.splitlines()
    assert lines[0].startswith("database tasuki_test_")
    assert lines[1:] == ["", "no jobs", "", "supervisors: 0", "nobody works on this database: start `tasuki-mp run`"]


@pytest.fixture
def busy(conn: Connection) -> dict[str, int]:
    owner = add_supervisor(conn, ["thumbnail", HOSTILE])
    jobs.fill(conn, 1234, queue="images", handler="thumbnail")
    jobs.add(conn, queue="default", handler="forgotten", scheduled_at="2199-01-01")
    running = jobs.add(
        conn,
        queue="images",
        handler=HOSTILE,
        status="running",
        owner=owner,
        lease_expires_at="2199-01-01",
        attempt=2,
        started_at="2020-01-01",
        pid=99,
        slot=3,
    )
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('nightly', now())")
    canceled = jobs.add(conn, queue="images", handler="thumbnail")
    jobs.cancel(conn, canceled)
    return {"running": running, "canceled": canceled}


def test_status_for_people(tasuki: Tasuki, dsn: str, busy: dict[str, int]) -> None:
    ended = tasuki("status", "--dsn", dsn)
    rows = [re.split(r"  +", line.strip()) for line in ended.out.splitlines()]
    assert ended.out.replace("\n", "").isprintable()
    assert ["default", "0", "1", "0", "0", "0", "0", "0", "-"] in rows
    assert ["images", "1,234", "0", "0", "1", "0", "0", "1"] in [row[:8] for row in rows]
    assert ["nightly (paused)", "0", "0", "0", "0", "0", "0", "0", "-"] in rows
    [running] = [row for row in rows if row[0] == str(busy["running"])]
    assert running[1:7] == [r"evil\x1b[31m[red]\x9b\nx", "images", "2/5", "worker-1", "99", "3"]
    [supervisor] = [row for row in rows if row[:2] == ["worker-1", "4711"]]
    assert supervisor[2:4] == ["0.1.0", "1/8"]
    assert supervisor[5:] == ["alive", "images"]
    assert ["forgotten", "1"] in rows


def test_status_for_programs(tasuki: Tasuki, dsn: str, busy: dict[str, int]) -> None:
    ended = tasuki("status", "--json", "--dsn", dsn)
    assert ended.out.count("\n") == 1
    assert ended.out.rstrip("\n").isprintable()
    status = ended.json
    images = status["queues"]["images"]
    assert (images["pending"], images["due"], images["running"], images["canceled"]) == (1234, 1234, 1, 1)
    assert status["queues"]["nightly"]["paused_at"]
    assert status["running_total"] == 1
    assert status["running"][0]["handler"] == HOSTILE
    assert status["supervisors"][0]["host"] == "worker-1"
    assert status["unknown_handlers"] == {"forgotten": 1}


def test_watching_in_a_pipe_says_it_again(dsn: str, conn: Connection) -> None:
    with Program("-m", "tasuki_mp", "status", "--json", "--watch", "--every", "100ms", "--dsn", dsn) as watch:
        assert json.loads(watch.line())["queues"] == {}
        jobs.add(conn, queue="images", handler="h")
        while not (queues := json.loads(watch.line())["queues"]):
            pass
        assert queues["images"]["due"] == 1


def test_show_a_pending_and_a_running_job(tasuki: Tasuki, dsn: str, busy: dict[str, int]) -> None:
    shown = tasuki("show", busy["running"], "--dsn", dsn).out
    assert shown.startswith(f"job {busy['running']}  running\n")
    assert "runs on     worker-1, pid 99, slot 3\n" in shown
    assert r"handler     evil\x1b[31m[red]\x9b\nx" in shown


def test_show_every_attempt(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    job_id = jobs.add(conn, handler="h", last_error=json.dumps({"kind": "crash", "type": "SIGSEGV", "message": "died"}))
    for lease_no, kind, error, output in (
        (1, "retry", None, None),
        (2, "snooze", None, None),
        (3, "release", None, None),
        (4, "rescue", None, None),
        (
            5,
            "retry",
            {"kind": "crash", "type": "SIGSEGV", "message": "died", "signal": "SIGSEGV"},
            "said\x1b[31m this\n",
        ),
    ):
        conn.execute(
            """INSERT INTO tasuki.attempt (job_id, lease_no, owner, attempt, kind, error, usage, output, started_at, ended_at)
               VALUES (%s, %s, gen_random_uuid(), %s, %s, %s, %s, %s, now() - interval '90 s', now())""",
            (job_id, lease_no, lease_no, kind, error and json.dumps(error), '{"pid": 7, "cpu_seconds": 1.25}', output),
        )
    shown = tasuki("show", job_id, "--dsn", dsn).out
    assert re.findall(r"^attempt (\d)  (.*)$", shown, re.MULTILINE) == [
        ("1", "to be tried again"),
        ("2", "put off by the handler"),
        ("3", "interrupted and given back"),
        ("4", "taken back from a supervisor that fell silent"),
        ("5", "to be tried again"),
    ]
    assert shown.count("took 1m 30s") == 5, "the usage has how long the handler ran"
    assert shown.count("usage       pid 7, cpu 1.2 s") == 5
    assert "error       SIGSEGV: died\n            kind crash, signal SIGSEGV\n" in shown
    assert "output\n  | said\\x1b[31m this\n" in shown
    attempts = tasuki("show", job_id, "--json", "--dsn", dsn).json["attempts"]
    assert [(attempt["attempt"], attempt["kind"]) for attempt in attempts][3:] == [(4, "rescue"), (5, "retry")]
    assert attempts[4]["error"]["signal"] == "SIGSEGV"


def test_show_no_job(tasuki: Tasuki, dsn: str) -> None:
    ended = tasuki("show", 2**60, "--dsn", dsn)
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert f"there is no job {2**60}" in ended.err


def test_show_held_and_odd_rows(tasuki: Tasuki, dsn: str, conn: Connection) -> None:
    held = jobs.add(conn, handler="h", held_by="handler", last_error=json.dumps(["no", "object"]))
    shown = tasuki("show", held, "--dsn", dsn).out
    assert "pending, held: no living supervisor knows its handler" in shown
    assert 'last error  ["no", "object"]' in shown


# ── run ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def run(dsn: str, *arguments: str) -> Iterator[subprocess.CompletedProcess[str]]:
    yield subprocess.run(
        [sys.executable, "-m", "tasuki_mp", "run", "--app", SHOP, "--procs", "1", "--dsn", dsn, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.usefixtures("tag")
def test_run_migrates_an_empty_database_drains_and_show_tells_everything(
    tasuki: Tasuki, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the working directory, from which the application is imported
    with run(empty_dsn, "--drain") as ended:
        assert ended.returncode == 0, ended.stderr
    assert "applied 0001" in ended.stderr
    good = int(tasuki("enqueue", "thumbnail", '{"path": "a.png"}', "--dsn", empty_dsn).out)
    bad = int(tasuki("enqueue", "break_down", json.dumps({"reason": "no\x1b[31m good"}), "--dsn", empty_dsn).out)
    with run(empty_dsn, "--drain=due", "--log-format", "json") as ended:
        assert ended.returncode == 0, ended.stderr
    events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert [(event["event"], event.get("job")) for event in events if event["level"] != "info"] == [("job failed", bad)]
    assert "making a.png" in ended.stdout + ended.stderr

    shown = tasuki("show", good, "--dsn", empty_dsn).out
    assert shown.startswith(f"job {good}  completed\n")
    for line in ("attempt     1 of 7", "queue       images, priority 1", 'result      "a.png@200"'):
        assert line in shown
    shown = tasuki("show", bad, "--dsn", empty_dsn).out
    assert shown.startswith(f"job {bad}  failed\n")
    assert r"error       ValueError: no\x1b[31m good" in shown
    assert "Traceback (most recent call last):" in shown
    assert shown.replace("\n", "").isprintable()
    job = tasuki("show", bad, "--json", "--dsn", empty_dsn).json
    assert (job["state"], job["error"]["type"], job["payload"]) == (
        "failed",
        "ValueError",
        {"reason": "no\x1b[31m good"},
    )
    assert job["usage"]["pid"]


@pytest.mark.usefixtures("tag")
def test_run_refuses_what_it_may_not_migrate(empty_dsn: str) -> None:
    with run(empty_dsn, "--no-migrate") as ended:
        assert ended.returncode == ExitCode.DATABASE
    assert "run `tasuki-mp migrate`" in ended.stderr
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("SELECT to_regnamespace('tasuki') IS NULL").fetchone() == (True,)


@pytest.mark.usefixtures("tag")
def test_run_says_what_it_had_to_leave(dsn: str, conn: Connection) -> None:
    jobs.add(conn, queue="images", handler="nobody_knows_me")
    large = jobs.add(conn, handler="scale", payload={"by": 2}, limits='{"memory": 1073741825}')
    wide = jobs.add(conn, handler="scale", payload={"by": 2}, limits='{"cpus": 4096}')
    with run(dsn, "--drain", "--memory-limit", "1GiB") as ended:
        assert ended.returncode == ExitCode.DRAIN_LEFT, ended.stderr
    assert "nobody_knows_me" in ended.stdout + ended.stderr
    assert "left: larger than this host" in ended.stdout + ended.stderr
    for id in (large, wide):
        row = jobs.live(conn, id)
        assert row is not None
        assert row["lease_no"] == 0, "it was never taken"


@pytest.mark.usefixtures("tag")
def test_run_leaves_what_is_held_for_a_key_in_a_paused_queue(dsn: str, conn: Connection) -> None:
    conn.execute("INSERT INTO tasuki.queue (name, paused_at, max_running_per_key) VALUES ('images', now(), 1)")
    for _ in range(3):
        jobs.add(conn, queue="images", handler="thumbnail", key="tenant", held_by="key")
    with run(dsn, "--drain", "--log-format", "json") as ended:
        assert ended.returncode == ExitCode.DRAIN_LEFT, ended.stderr
    events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    (left,) = [event for event in events if event["event"].startswith("left: ")]
    assert (left["event"], left["queue"], left["jobs"]) == ("left: the queue is paused", "images", 3)


@pytest.mark.usefixtures("tag")
def test_run_leaves_what_waits_for_a_job_that_it_does_not_run(dsn: str, conn: Connection) -> None:
    need = jobs.add(conn, queue="elsewhere", handler="scale", payload={"by": 2})
    waiting = jobs.add(conn, handler="scale", payload={"by": 2})
    conn.execute("SELECT tasuki.depend(%s, %s)", (waiting, [need]))
    with run(dsn, "--drain", "--log-format", "json") as ended:
        assert ended.returncode == ExitCode.DRAIN_LEFT, ended.stderr
    events = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    (left,) = [event for event in events if event["event"].startswith("left: ")]
    assert left["event"] == "left: waits for a job that is not run here"
    assert (left["handler"], left["jobs"], left["waits_for"]) == ("scale", 1, need)


@pytest.mark.usefixtures("tag")
def test_run_does_what_was_held_while_nobody_knew_its_handler(dsn: str, conn: Connection) -> None:
    held = jobs.add(conn, handler="scale", payload={"by": 2}, held_by="handler")
    with run(dsn, "--drain") as ended:
        assert ended.returncode == ExitCode.OK, ended.stderr
    assert jobs.status(conn, held) == "completed"


@pytest.mark.usefixtures("tag")
def test_run_with_an_application_that_can_not_be_imported(dsn: str, tmp_path: Any) -> None:
    (tmp_path / "broken_shop.py").write_text("import no_such_module\n")
    with run(dsn, "--app", "broken_shop:app", "--app-dir", str(tmp_path)) as ended:
        assert ended.returncode == ExitCode.APP
    assert "No module named 'no_such_module'" in ended.stderr


@pytest.mark.usefixtures("tag")
def test_run_on_an_address_that_is_taken(dsn: str) -> None:
    with run(dsn, "--http", "192.0.2.1:9") as ended:  # an address for documentation: no machine has it
        assert ended.returncode == ExitCode.USAGE
    assert "--http: can't listen on 192.0.2.1:9" in ended.stderr


@pytest.mark.usefixtures("tag")
def test_run_takes_options_from_the_environment(dsn: str, conn: Connection) -> None:
    env = {"TASUKI_APP": SHOP, "TASUKI_QUEUE": "images=3,other", "TASUKI_PROCS": "1", "TASUKI_DSN": dsn}
    with Program("-m", "tasuki_mp", "run", env=env) as program:
        queues = wait_for_row(conn, "SELECT procs, queues FROM tasuki.supervisor")
        assert queues == (1, ["images", "other"])
        program.kill()


def test_the_embedded_database_is_at_everybodys_service(
    tasuki: Tasuki, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = Path(str(conninfo_to_dict(postgres.dsn).get("host", "")))
    if not (sockets.parent / "users").exists():
        pytest.skip("the tests run on another server")
    monkeypatch.setenv(FOLDER_VARIABLE, str(sockets.parent))
    assert tasuki("migrate", "--dsn", "embedded").code == 0
    ended = tasuki("status", "--dsn", "embedded")
    assert ended.out.splitlines()[0] == f"database embedded PostgreSQL {MAJOR} in {sockets.parent}"
