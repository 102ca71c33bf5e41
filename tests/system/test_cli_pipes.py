"""Files of jobs and pipes, waiting and locks at the command line, and all of it as cron runs it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasuki_mp.config import ExitCode
from tasuki_mp.errors import ConfigError
from tasuki_mp.store import named_lock
from tests.support import jobs
from tests.support.hooked import Supervised
from tests.support.program import Program
from tests.support.waiting import wait_for_row
from tests.system.conftest import Tasuki

Conn = psycopg.Connection[Any]
SHOP = "tests.support.shop:app"
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tasuki_mp", "enqueue")


def payloads(conn: Conn) -> list[Any]:
    return [payload for (payload,) in conn.execute("SELECT payload FROM tasuki.job ORDER BY id")]


def piped(dsn: str, *options: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "TASUKI_DSN": dsn}
    return subprocess.run(
        [*COMMAND, *options], input=data, env=environment, capture_output=True, check=False, timeout=110, cwd=ROOT
    )


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", [["--file", "-"], ["-"]], ids=" ".join)
def test_a_pipe_of_json_lines(dsn: str, conn: Conn, source: list[str]) -> None:
    ended = piped(dsn, "h", *source, "--queue", "q", "--priority", "1", "--json", data=b'{"a":1}\n\n{"a":2}')
    assert (ended.returncode, ended.stderr) == (0, b"")
    said = json.loads(ended.stdout)
    assert (said["jobs"], said["bad"]) == (2, 0)
    assert [each for first, last in said["ids"] for each in range(first, last + 1)] == [
        job_id for (job_id,) in conn.execute("SELECT id FROM tasuki.job ORDER BY id")
    ]
    assert payloads(conn) == [{"a": 1}, {"a": 2}]
    assert conn.execute("SELECT DISTINCT queue, priority, max_attempts FROM tasuki.job").fetchall() == [("q", 1, 5)]


def test_csv_is_converted_by_the_signature_and_gzip_unpacked(
    tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.csv.gz"
    file.write_bytes(gzip.compress(b"path,width\n1.png,3\n2.png,\n"))
    ended = tasuki("enqueue", "thumbnail", "--file", file, "--app", SHOP, "--dsn", dsn)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert payloads(conn) == [{"path": "1.png", "width": 3}, {"path": "2.png"}]
    assert conn.execute("SELECT DISTINCT queue, priority, max_attempts FROM tasuki.job").fetchall() == [
        ("images", 1, 7)
    ]


def test_without_the_application_the_handler_s_defaults_are_those_it_declared(
    tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path
) -> None:
    (tmp_path / "jobs.jsonl").write_text("{}\n")
    (tmp_path / "jobs.csv").write_text("a\n1\n")
    options = ("enqueue", "h", "--dsn", dsn, "--file")
    unknown = tasuki(*options, "jobs.jsonl")
    assert (unknown.code, unknown.out) == (ExitCode.USAGE, "")
    assert "no handler named 'h' is known to this database" in unknown.err
    refused = tasuki(*options, "jobs.csv")
    assert refused.code == ExitCode.USAGE
    assert "CSV needs --app" in refused.err, "also of a handler that nobody knows"
    conn.execute("INSERT INTO tasuki.handler (name, queue, priority, max_attempts) VALUES ('h', 'q', 3, 2)")
    assert tasuki(*options, "jobs.jsonl").code == 0
    assert conn.execute("SELECT queue, priority, max_attempts FROM tasuki.job").fetchall() == [("q", 3, 2)]
    refused = tasuki(*options, "jobs.csv")
    assert refused.code == ExitCode.USAGE
    assert "CSV needs --app: without the handler's signature nobody knows" in refused.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("j.jsonl", '{"path": "a"}\n\n{"path": 3}\n{"path": 4}', "j.jsonl, line 3: $.path: Expected `str`, got `int`"),
        ("j.jsonl", '{"path": "a"}\n{"path": "b"\n', "j.jsonl, line 2: is no JSON"),
        ("j.jsonl", '{"path": "\\u0000"}', "j.jsonl, line 1: $.path: contains a NUL character"),
        ("j.csv", "path,width\na,1\nb,x\n", "j.csv, line 3: $.width: Expected `int`, got `str`"),
        ("j.csv", "path,widht\na,1\n", "j.csv, line 1: $.widht: unexpected column"),
        ("j.csv", "path,width\na,1\n\nb\n", "j.csv, line 4: has 1 cells, and the header 2"),
    ],
)
def test_a_bad_line_is_named_and_nothing_enqueued(
    tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    ended = tasuki("enqueue", "thumbnail", "--file", name, "--app", SHOP, "--dsn", dsn)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    [line] = ended.err.splitlines()
    assert line.startswith(f"tasuki-mp: {message}")
    assert payloads(conn) == []


def test_chunks_before_a_bad_line_stay(tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(5)) + "x\n")
    ended = tasuki("enqueue", "h", "--file", "j.jsonl", "--queue", "q", "--chunk", "2", "--dsn", dsn)
    assert ended.code == ExitCode.USAGE
    assert "line 6: is no JSON" in ended.err
    assert "4 jobs enqueued from the lines up to 4, and none of the others" in ended.err
    assert [payload["n"] for payload in payloads(conn)] == [0, 1, 2, 3]


def test_bad_lines_are_put_aside_to_be_mended(tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path) -> None:
    (tmp_path / "j.csv").write_text('path,width\na,1\nb,x\n"c\n",y\nd,2\n')
    options = ("enqueue", "thumbnail", "--app", SHOP, "--dsn", dsn, "--skip-bad", "bad.csv", "--file")
    ended = tasuki(*options, "j.csv")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == (
        "tasuki-mp: 2 bad lines in bad.csv; the first: j.csv, line 3: $.width: Expected `int`, got `str`\n"
    )
    assert [payload["path"] for payload in payloads(conn)] == ["a", "d"]
    bad = (tmp_path / "bad.csv").read_text()
    assert bad == 'path,width\nb,x\n"c\n",y\n'
    (tmp_path / "mended.csv").write_text(bad.replace("x", "3").replace("y", "4"))
    assert tasuki(*options, "mended.csv").code == 0
    assert payloads(conn)[2:] == [{"path": "b", "width": 3}, {"path": "c\n", "width": 4}]
    assert (tmp_path / "bad.csv").read_text() == bad
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "j.csv", "mended.csv"]


def test_bad_lines_that_can_not_be_kept_stop_everything(tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text("{}\nx\n")
    ended = tasuki("enqueue", "h", "--file", "j.jsonl", "--queue", "q", "--skip-bad", "nowhere/bad", "--dsn", dsn)
    assert ended.code == ExitCode.USAGE
    assert "--skip-bad: can't write nowhere/bad" in ended.err
    assert payloads(conn) == []


def test_a_dry_run_checks_all_and_needs_no_database(tasuki: Tasuki, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"path": "a"}\n' + "x\n" * 30 + '{"path": "b"}\n')
    ended = tasuki("enqueue", "thumbnail", "--file", "j.jsonl", "--app", SHOP, "--dry-run")
    assert (ended.code, ended.out) == (ExitCode.USAGE, "2 jobs could be enqueued, 30 bad lines\n")
    assert len(ended.err.splitlines()) == 21
    assert ended.err.splitlines()[-1] == "tasuki-mp: and 10 more"
    fine = tasuki("enqueue", "thumbnail", '{"path": "a"}', "--app", SHOP, "--dry-run", "--json")
    assert (fine.code, fine.json) == (0, {"jobs": 1, "bad": 0})


def test_a_dry_run_without_the_application_enqueues_nothing(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    ended = tasuki("enqueue", "h", "{}", "--queue", "q", "--dry-run", "--dsn", dsn)
    assert (ended.code, ended.out) == (0, "1 job could be enqueued\n")
    assert payloads(conn) == []


def test_unique_keys_are_made_of_the_payload(tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"n": 1, "t": "x"}\n{"n": 2, "t": "x"}\n{"n": 1, "t": "x", "m": 1}\n')
    options = ("enqueue", "h", "--queue", "q", "--dsn", dsn, "--unique-key", "n-{n}-{t}")
    ended = tasuki(*options, "--file", "j.jsonl", "--json")
    assert (ended.code, ended.json["jobs"]) == (0, 3)
    assert [payload["n"] for payload in payloads(conn)] == [1, 2]
    one = tasuki(*options, '{"n": 1, "t": "x", "m": 2}', "--on-conflict", "replace", "--json")
    assert one.json["id"] == ended.json["ids"][0][0]
    assert payloads(conn)[0] == {"n": 1, "t": "x", "m": 2}
    missing = tasuki(*options, '{"n": 1}')
    assert missing.code == ExitCode.USAGE
    assert "$.t: missing, and the unique key is made of it" in missing.err


@pytest.mark.parametrize("chunk", [[], ["--chunk", "2"]], ids=["at once", "in chunks"])
def test_the_jobs_of_a_file_may_be_a_batch(
    tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path, chunk: list[str]
) -> None:
    (tmp_path / "j.jsonl").write_text("{}\n" * 5)
    options = ("enqueue", "h", "--file", "j.jsonl", "--queue", "q", "--batch", "nightly", *chunk, "--dsn", dsn)
    ended = tasuki(*options, "--json")
    assert conn.execute("SELECT id, name, total, sealed_at IS NOT NULL FROM tasuki.batch").fetchall() == [
        (ended.json["batch"], "nightly", 5, True)
    ]
    assert conn.execute("SELECT DISTINCT batch_id FROM tasuki.job").fetchall() == [(ended.json["batch"],)]
    (tmp_path / "j.jsonl").write_text("{}\n{}\n{}\nx\n")
    assert tasuki(*options).code == ExitCode.USAGE
    # What was committed before the bad line is a batch of its own, and can end.
    rest = conn.execute("SELECT total, sealed_at IS NOT NULL FROM tasuki.batch WHERE id > %s", (ended.json["batch"],))
    assert rest.fetchall() == ([(2, True)] if chunk else [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{}", "--file", "x"], "a payload or --file, not both"),
        (["--batch", "x"], "--batch is for a --file"),
        (["--file", "x", "--batch", "a\nb"], "--batch: a batch's name has 1 to 200 printable characters"),
        (["--chunk", "2"], "--chunk is for a --file"),
        (["--skip-bad", "x"], "--skip-bad is for a --file"),
        (["--timeout", "1s"], "give both"),
        (["--wait", "--timeout", "soon"], "--timeout: 'soon' is no duration"),
        (["--file", "no.jsonl"], "can't read no.jsonl: No such file or directory"),
        (["--file", "."], "can't read .: Is a directory"),
    ],
)
def test_options_that_do_not_go_together(tasuki: Tasuki, dsn: str, options: list[str], message: str) -> None:
    ended = tasuki("enqueue", "h", "--queue", "q", *options, "--dsn", dsn)
    assert ended.code == ExitCode.USAGE
    [line] = ended.err.splitlines()
    assert message in line


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a program and prints its peak of memory in KiB: what is forked from a large process counts as large at first."""


def test_a_pipe_of_any_length_takes_constant_memory(dsn: str, conn: Conn) -> None:
    count = 60_000
    program = subprocess.Popen(
        [sys.executable, "-c", MEASURED, *COMMAND, "h", "--file", "-", "--queue", "q"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TASUKI_DSN": dsn},
    )
    assert program.stdin and program.stdout
    line = b'{"text": "' + b"x" * 2000 + b'"}\n'
    with program.stdin:
        for _ in range(count // 1000):
            program.stdin.write(line * 1000)
    with program.stdout:
        peak = int(program.stdout.read())
    assert program.wait() == 0
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (count,)
    assert peak < 80 * 1024, "KiB, of 120,000,000 bytes that went through"


# ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_waiting_tells_by_its_exit_code_what_became_of_the_jobs(
    tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Path
) -> None:
    (tmp_path / "j.jsonl").write_text("".join(f'{{"path": "{n}"}}\n' for n in range(20)))
    with Supervised(dsn, app=SHOP) as supervised:
        supervised.started()
        options = ("--wait", "--app", SHOP, "--dsn", dsn)
        good = tasuki("enqueue", "thumbnail", "--file", "j.jsonl", *options, "--json")
        assert (good.code, good.err) == (0, "")
        assert {name: good.json[name] for name in ("jobs", "completed", "failed", "canceled", "left", "gone")} == {
            "jobs": 20,
            "completed": 20,
            "failed": 0,
            "canceled": 0,
            "left": 0,
            "gone": 0,
        }
        bad = tasuki("enqueue", "break_down", '{"reason": "it is \\u001b[1m broken"}', *options)
        assert bad.code == ExitCode.NOT_COMPLETED
        assert bad.err == "tasuki-mp: of 1 job: 1 failed, ValueError: it is \\x1b[1m broken\n"
        assert supervised.stop() == 0
    late = tasuki("enqueue", "thumbnail", "--file", "j.jsonl", *options, "--timeout", "0.1s")
    assert late.code == ExitCode.TIMEOUT
    assert late.err == "tasuki-mp: of 20 jobs: 20 not final after 100 ms\n"
    assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (20,)


def test_jobs_that_were_canceled_or_deleted_have_not_completed(dsn: str, conn: Conn) -> None:
    with waiter(dsn, "--file", "-", data='{"n": 1}\n{"n": 2}\n') as program:
        wait_for_row(conn, "SELECT 1 FROM tasuki.job HAVING count(*) = 2")
        conn.execute("DELETE FROM tasuki.job WHERE payload ->> 'n' = '2'")
        (job_id,) = conn.execute("SELECT id FROM tasuki.job").fetchone() or (0,)
        assert jobs.cancel(conn, job_id) == "canceled"
        assert program.wait() == ExitCode.NOT_COMPLETED
        assert program.further_lines() == [
            f"tasuki-mp: of 2 jobs: 1 was canceled (the first: {job_id}), 1 deleted meanwhile"
        ]


def test_of_no_jobs_all_have_completed(tasuki: Tasuki, dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.touch()
    command = ("enqueue", "h", "--queue", "q", "--file", file, "--wait", "--dsn", dsn)
    ended = tasuki(*command)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    said = tasuki(*command, "--batch", "nightly", "--json")
    assert (said.code, said.json["jobs"], said.json["completed"], said.json["left"]) == (0, 0, 0, 0)


def test_waiting_outlives_a_lost_connection(dsn: str, conn: Conn) -> None:
    with waiter(dsn, "{}", "--lock", "nightly") as program:
        job_id = int(program.line())
        assert jobs.status(conn, job_id) == "pending"
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tasuki-mp enqueue'"
        assert conn.execute(cut).fetchall() == [(True,)]
        wait_for_row(conn, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 7235422")
        jobs.cancel(conn, job_id)
        assert program.wait() == ExitCode.NOT_COMPLETED


def waiter(dsn: str, *options: str, data: str = "") -> Program:
    """`tasuki-mp enqueue --wait` of a job that nobody runs."""
    program = Program(
        *("-m", "tasuki_mp", "enqueue", "h", "--queue", "nobody", "--wait", *options),
        env={"TASUKI_DSN": dsn},
        stderr=subprocess.STDOUT,
    )
    if data:
        assert program._process.stdin
        with program._process.stdin as stdin:
            stdin.write(data)
    return program


# ── the lock ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_runs_never_overlap(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    with waiter(dsn, "{}", "--lock", "nightly") as program:
        first = int(program.line())
        again = tasuki("enqueue", "h", "--queue", "q", "--lock", "nightly", "--dsn", dsn)
        assert (again.code, again.out) == (ExitCode.LOCKED, "")
        [line] = again.err.splitlines()
        assert line.startswith("tasuki-mp: another run holds the lock 'nightly' (since ")
        assert tasuki("enqueue", "h", "--queue", "q", "--lock", "other", "--dsn", dsn).code == 0
        jobs.cancel(conn, first)
        assert program.wait() == ExitCode.NOT_COMPLETED
    assert tasuki("enqueue", "h", "--queue", "q", "--lock", "nightly", "--dsn", dsn).code == 0


def test_a_lock_is_given_to_one_of_many(dsn: str) -> None:
    won: list[Conn] = []
    lost: list[Exception] = []
    ready = threading.Barrier(8)

    def try_it() -> None:
        connection = psycopg.connect(dsn, autocommit=True)
        ready.wait()
        try:
            named_lock.take(connection, "it")
            won.append(connection)
        except named_lock.LockedError as error:
            lost.append(error)
            connection.close()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].close()


def test_a_lock_behind_a_pooler_is_refused(conn: Conn) -> None:
    class Pooled:
        """What PgBouncer looks like: the process it names at the login is none of the server's."""

        class info:  # noqa: N801  psycopg's own spelling
            backend_pid = 1

        execute = conn.execute

    with pytest.raises(ConfigError, match="goes through a pooler such as PgBouncer"):
        named_lock.take(Pooled(), "it")  # type: ignore[arg-type]  # as much of a connection as it needs


# ── cron ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cron(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a crontab line as Debian's cron does: `/bin/sh -c` with what stands before a percent sign, the rest as input."""
    command, data = crontab_command(line)
    environment = {
        "HOME": str(home),
        "LOGNAME": "ann",
        "SHELL": "/bin/sh",
        "PATH": "/usr/bin:/bin",
    }
    return subprocess.run(
        ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items()), "/bin/sh", "-c", command],
        input=data,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=home,
    )


def crontab_command(line: str) -> tuple[str, str]:
    """The command of a crontab line and its input: an unescaped percent sign ends the one, and is a newline in the other."""
    command = line.split(maxsplit=5)[5]
    parts = command.replace("\\%", "\0").split("%")
    parts = [part.replace("\0", "%") for part in parts]
    return parts[0], "\n".join(parts[1:])


def program_line(*options: str) -> str:
    program = Path(sys.executable).with_name("tasuki-mp")
    return " ".join(["*/5 * * * *", f"'{program}'", "enqueue", *options])


@pytest.fixture
def home(tmp_path: Path, dsn: str) -> Path:
    """A home whose configuration file names the database, as it does for a user of cron."""
    folder = tmp_path / "home" / ".config" / "tasuki-mp"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f"dsn = {json.dumps(dsn)}\n")
    return tmp_path / "home"


def test_crontab_lines_work_in_cron_s_environment(home: Path, conn: Conn) -> None:
    (home / "jobs.jsonl").write_text('{"n": 1, "name": "Müller"}\n{"n": 2}\n')
    quiet = cron(home, program_line("h", "--file", "jobs.jsonl", "--queue", "q", "--lock", "nightly"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    with_input = cron(home, program_line("h", "--file", "-", "--queue", "q", '%{"n": 3}%{"n": 4}'))
    assert (with_input.returncode, with_input.stdout, with_input.stderr) == (0, "", "")
    one = cron(home, program_line("h", '\'{"n": 5, "rate": "7\\%"}\'', "--queue", "q", "-q"))
    assert (one.returncode, one.stdout, one.stderr) == (0, "", "")
    assert payloads(conn) == [{"n": 1, "name": "Müller"}, {"n": 2}, {"n": 3}, {"n": 4}, {"n": 5, "rate": "7%"}]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["h", "--file", "no.jsonl", "--queue", "q"], ExitCode.USAGE, "can't read no.jsonl"),
        (["typo"], ExitCode.USAGE, "no handler named 'typo'"),
        (["h", "--app", "no_such_module:app"], ExitCode.APP, "ModuleNotFoundError: No module named 'no_such_module'"),
        (["h", "--dsn", "postgresql://127.0.0.1:1/x"], ExitCode.DATABASE, "can't reach the database"),
    ],
)
def test_cron_mails_one_line_of_what_went_wrong(
    home: Path, options: Sequence[str], code: ExitCode, message: str
) -> None:
    ended = cron(home, program_line(*options))
    assert (ended.returncode, ended.stdout) == (code, "")
    [line] = ended.stderr.splitlines()
    assert message in line
