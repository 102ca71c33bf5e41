"""What the doctor finds in a real database, and what its exit code says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import pytest

from tasuki_mp import sql
from tasuki_mp.config import ExitCode
from tasuki_mp.store import doctor
from tasuki_mp.store.connect import connect
from tests.support import jobs
from tests.support.holder import Holder
from tests.system.conftest import Tasuki

Conn = psycopg.Connection[Any]


def findings(tasuki: Tasuki, dsn: str) -> tuple[int, dict[str, str]]:
    """The exit code, and topics with their worst severity."""
    ended = tasuki("doctor", "--json", "--dsn", dsn)
    found: dict[str, str] = {}
    for finding in ended.json["findings"]:
        assert finding["what"]
        assert finding["advice"]
        found.setdefault(finding["topic"], finding["severity"])
    return ended.code, found


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the tests is not made to last; the doctor is told that it is."""
    judge = doctor.judge_server
    changes = {"has_fsync": True, "has_full_page_writes": True, "synchronous_commit": "on"}
    monkeypatch.setattr(doctor, "judge_server", lambda server: judge(msgspec.structs.replace(server, **changes)))


@pytest.mark.usefixtures("durable")
def test_nothing_is_wrong(tasuki: Tasuki, dsn: str, one_alive: Holder) -> None:
    ended = tasuki("doctor", "--dsn", dsn)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "nothing is wrong"
    assert findings(tasuki, dsn) == (0, {})


@pytest.fixture
def one_alive(dsn: str) -> Any:
    with Holder(dsn) as holder:
        holder.register()
        yield holder


@pytest.mark.usefixtures("durable")
def test_handlers_of_the_same_name_in_several_applications(
    tasuki: Tasuki, dsn: str, conn: Conn, one_alive: Holder
) -> None:
    with Holder(dsn) as same, Holder(dsn) as other:
        for holder in (one_alive, same):
            holder.register(app="shop:app", handlers=["a", "b", "work"])
        other.register(app="bank:app", handlers=["a", "b", "c"], host="there")
        ended = tasuki("doctor", "--json", "--dsn", dsn)
        (finding,) = ended.json["findings"]
        assert (finding["topic"], finding["severity"]) == ("names", "warning")
        assert "2 names" in finding["what"]
        assert "bank:app on there, shop:app on here; one of them is a" in finding["what"]
        conn.execute("UPDATE tasuki.supervisor SET app = NULL WHERE owner = %s", (other.owner,))
        assert findings(tasuki, dsn) == (0, {}), "of a release that does not say"


@pytest.mark.usefixtures("durable")
def test_what_it_finds_decides_the_exit_code(tasuki: Tasuki, dsn: str, conn: Conn, one_alive: Holder) -> None:
    jobs.add(conn, queue="nobody-s")
    assert findings(tasuki, dsn) == (ExitCode.WARNINGS, {"queues": "warning"})
    jobs.add(conn, handler="nobody's \x1b[31m")
    jobs.add(conn)
    (lease,) = one_alive.lease()
    jobs.expire(conn, lease.id)
    conn.execute("UPDATE tasuki.job SET lease_expires_at = now() - interval '1 hour' WHERE status = 'running'")
    conn.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('nobody-s', now())")
    code, found = findings(tasuki, dsn)
    assert code == ExitCode.PROBLEMS
    assert found == {"stuck": "problem", "handlers": "warning", "queues": "note"}
    out = tasuki("doctor", "--dsn", dsn).out
    assert out.index("problem: ") < out.index("warning: ") < out.index("note: ")
    assert "nobody's \\x1b[31m, of which 1 job is pending" in out
    assert "\x1b" not in out


@pytest.mark.usefixtures("durable")
def test_tables_that_a_crash_empties_and_days_without_place(
    tasuki: Tasuki, dsn: str, conn: Conn, one_alive: Holder
) -> None:
    conn.execute("ALTER TABLE tasuki.checkpoint SET UNLOGGED")
    assert findings(tasuki, dsn) == (ExitCode.PROBLEMS, {"durability": "problem"})
    conn.execute("ALTER TABLE tasuki.checkpoint SET LOGGED")
    conn.execute(f"DROP TABLE tasuki.job_archive_failed_{datetime.now(UTC):%Y%m%d}")
    assert findings(tasuki, dsn) == (ExitCode.PROBLEMS, {"partitions": "problem"})


def test_the_tests_own_server_is_not_durable(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    if conn.execute("SHOW fsync").fetchone() == ("on",):
        pytest.skip("a server of somebody else")
    ended = tasuki("doctor", "--dsn", dsn)
    assert ended.code == ExitCode.PROBLEMS
    assert "problem: fsync is off" in ended.out
    assert "ALTER SYSTEM SET fsync = on" in ended.out


def test_a_database_that_can_t_be_asked(tasuki: Tasuki, empty_dsn: str) -> None:
    ended = tasuki("doctor", "--json", "--dsn", "postgresql://127.0.0.1:1/x")
    assert ended.code == ExitCode.DATABASE
    assert [finding["topic"] for finding in ended.json["findings"]] == ["connection"]
    ended = tasuki("doctor", "--dsn", empty_dsn)
    assert ended.code == ExitCode.PROBLEMS
    assert "tasuki-mp migrate" in ended.out


def test_open_transactions_are_seen(dsn: str, conn: Conn) -> None:
    with psycopg.connect(dsn, application_name="forgotten") as old, connect(dsn, name="doctor") as ours:
        old.execute("SELECT count(*) FROM tasuki.job")
        pid = old.info.backend_pid
        rows = ours.execute(sql.query("examine_horizon")).fetchall()
    (kind, name, detail, seconds, _) = next(row for row in rows if "forgotten" in row[1])
    assert (kind, name) == ("transaction", f"pid {pid} (forgotten)")
    assert detail.startswith("idle in transaction")
    assert seconds >= 0


@pytest.mark.usefixtures("durable", "one_alive")
def test_a_batch_that_nobody_fills_any_more(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    conn.execute("INSERT INTO tasuki.batch (name) VALUES ('new')")
    assert findings(tasuki, dsn) == (0, {})
    conn.execute("UPDATE tasuki.batch SET created_at = now() - interval '25 hours'")
    assert findings(tasuki, dsn) == (0, {"batches": "note"})


def test_a_server_that_nothing_proves_to_be_the_right_one(
    tasuki: Tasuki, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasuki_mp.store.tls._is_here", lambda _host: False)
    code, found = findings(tasuki, dsn)
    assert code != ExitCode.OK
    assert found["tls"] == "warning"
