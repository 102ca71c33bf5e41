"""Listing and changing jobs and queues, retention and export from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import sql
from tasuki_mp.config import ExitCode
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.hooked import Supervised
from tests.support.steering import add_day, archive
from tests.support.waiting import wait_for_row
from tests.system.conftest import Tasuki

Conn = psycopg.Connection[Any]


@pytest.fixture
def shop(conn: Conn) -> dict[str, int]:
    """One job of each kind, by name."""
    return {
        "done": archive(conn, 1, queue="images", handler="thumbnail")[0],
        "failed": archive(conn, 1, queue="images", status="failed", error="ValueError: evil \x1b[31m picture")[0],
        "pending": jobs.add(conn, queue="images", handler="thumbnail"),
        "other": jobs.add(conn, queue="other", handler="scale", key="tenant-42"),
    }


# ── jobs list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_are_listed_newest_first(tasuki: Tasuki, dsn: str, shop: dict[str, int]) -> None:
    ended = tasuki("jobs", "list", "--dsn", dsn)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["ID", "STATE", "HANDLER", "QUEUE", "ATTEMPT", "WHEN", "RAN", "ERROR"]
    assert [int(line.split()[0]) for line in lines[1:]] == [
        shop[name] for name in ("other", "pending", "failed", "done")
    ]
    assert "ValueError: evil \\x1b[31m picture" in ended.out
    assert "\x1b" not in ended.out


def test_filters_pages_and_json(tasuki: Tasuki, dsn: str, shop: dict[str, int]) -> None:
    first = tasuki("jobs", "list", "--queue", "images", "--limit", "2", "--json", "--dsn", dsn).json
    assert [job["id"] for job in first["jobs"]] == [shop["pending"], shop["failed"]]
    assert first["jobs"][1]["state"] == "failed"
    rest = tasuki("jobs", "list", "--queue", "images", "--cursor", first["cursor"], "--json", "--dsn", dsn).json
    assert ([job["id"] for job in rest["jobs"]], rest["cursor"]) == ([shop["done"]], None)
    note = tasuki("jobs", "list", "--limit", "2", "--dsn", dsn).out.splitlines()[-1]
    assert note == f"more: --cursor {shop['pending']}"
    for filters, found in (
        (["--state", "failed", "--state", "completed"], ["failed", "done"]),
        (["--error", "EVIL"], ["failed"]),
        (["--key", "tenant-42"], ["other"]),
        (["--handler", "thumbnail", "--since", "1h"], ["pending", "done"]),
        (["--since", "2100-01-01T00:00Z"], []),
    ):
        listed = tasuki("jobs", "list", *filters, "--json", "--dsn", dsn).json["jobs"]
        assert [job["id"] for job in listed] == [shop[name] for name in found], filters
    assert tasuki("jobs", "list", "--queue", "nobody-s", "--dsn", dsn).out == "no jobs\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs", "list", "--state", "done"], "'done' is not one of"),
        (["jobs", "list", "--since", "tomorrow"], "--since: 'tomorrow' is no time; write it like"),
        (["jobs", "list", "--queue", "a b"], "--queue: 'a b' is no queue name"),
        (["jobs", "list", "--error", "\udcff"], "--error is not valid UTF-8"),
        (["cancel"], "which jobs? Give their ids, or filters"),
        (["delete", "7", "--queue", "a"], "by their ids or by filters, not by both"),
        (["retry", "--state", "pending"], "--state: retry is not for jobs that are pending"),
        (["cancel", "--state", "failed"], "--state: cancel is not for jobs that are failed"),
        (["move", "7"], "Missing option '--to'"),
        (["move", "7", "--to", "a b"], "--to: 'a b' is no queue name"),
        (["reschedule", "7"], "when? Give --at or --after"),
        (["reschedule", "7", "--at", "2027-01-01T00:00"], "has no time zone"),
        (["reschedule", "7", "--at", "2027-01-01"], "or 2027-01-01T00:00Z"),
        (["jobs", "list", "--since", "2027-01-01"], "or 2027-01-01T00:00Z"),
        (["queue", "pause", "a b"], "QUEUE: 'a b' is no queue name"),
        (["queue", "keep", "a", "1s"], "less than a minute"),
        (["prune", "--keep-failed", "2h"], "must be a day or more, or forever"),
        (["export", "--since", "1h", "--until", "2h"], "--until is not after --since"),
    ],
)
def test_mistakes_are_told_before_the_database_is_asked(tasuki: Tasuki, arguments: list[str], message: str) -> None:
    ended = tasuki(*arguments, "--dsn", "postgresql://127.0.0.1:1/x")
    assert ended.code == ExitCode.USAGE
    assert message in ended.err


# ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retry_and_what_show_says_of_both(tasuki: Tasuki, dsn: str, shop: dict[str, int]) -> None:
    ended = tasuki("retry", shop["failed"], shop["done"], shop["pending"], "--dsn", dsn)
    assert ended.code == 0
    first, second, third = ended.out.splitlines()
    assert first.split()[:2] == [str(shop["done"]), "retried"]
    assert third.split()[1:] == ["not", "finished", "yet"]
    copy = int(second.split()[-1])
    assert f"retried as  {copy}" in tasuki("show", shop["failed"], "--dsn", dsn).out
    assert f"retry of    {shop['failed']}" in tasuki("show", copy, "--dsn", dsn).out
    again = tasuki("retry", shop["failed"], "--json", "--dsn", dsn).json
    assert (again["done"], again["skipped"]) == (0, {"retried before": 1})
    assert again["copies"] == {str(shop["failed"]): copy}
    assert tasuki("retry", 10**9, "--dsn", dsn).code == ExitCode.FAILED


def test_a_dry_run_changes_nothing(tasuki: Tasuki, dsn: str, conn: Conn, shop: dict[str, int]) -> None:
    for arguments, out in (
        (["delete", "--queue", "images"], "would be deleted: 3 jobs\n"),
        (["cancel", "--handler", "thumbnail"], "would be canceled: 1 job\n"),
        (["retry", "--since", "1h"], "would be retried: 1 job\n"),
        (["move", "--queue", "images", "--to", "other"], "would be moved: 1 job\n"),
        (["reschedule", "--queue", "images", "--after", "1h"], "would be rescheduled: 1 job\n"),
    ):
        ended = tasuki(*arguments, "--dry-run", "--dsn", dsn)
        assert (ended.code, ended.out) == (0, out)
    assert [jobs.status(conn, shop[name]) for name in shop] == ["completed", "failed", "pending", "pending"]
    assert len(conn.execute("SELECT FROM tasuki.job WHERE queue = 'images'").fetchall()) == 1


def test_changes_by_filter_say_what_was_left_out(tasuki: Tasuki, dsn: str, conn: Conn, shop: dict[str, int]) -> None:
    with Holder(dsn) as holder:
        jobs.add(conn)
        (lease,) = holder.lease()
        moved = tasuki("move", "--handler", "thumbnail", "--to", "slow", "--dsn", dsn)
        assert (moved.code, moved.out, moved.err) == (0, "moved: 1 job\n", "")
        put_off = tasuki("reschedule", "--queue", "slow", "--at", "2100-01-01T00:00Z", "--json", "--dsn", dsn).json
        assert put_off == {"done": 1, "skipped": {}, "is_dry_run": False}
        canceled = tasuki("cancel", "--queue", "slow", "--dsn", dsn)
        assert canceled.out == "canceled: 1 job\n"
        deleted = tasuki("delete", "--queue", "default", "--state", "pending", "--state", "running", "--dsn", dsn)
        assert (deleted.code, deleted.out) == (0, "deleted: 0 jobs\n")
        assert deleted.err == "skipped: 1 job, running, and left alone: cancel first\n"
        assert holder.end(lease, "completed") == ("applied", "completed")
    gone = tasuki("delete", shop["done"], "--yes", "--dsn", dsn)
    assert gone.out == f"{shop['done']}  deleted\n"
    assert jobs.status(conn, shop["done"]) is None


# ── queues ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_queues_are_listed_paused_and_resumed(tasuki: Tasuki, dsn: str, conn: Conn, shop: dict[str, int]) -> None:
    assert tasuki("queue", "pause", "images", "--dsn", dsn).out == "images: paused\n"
    assert tasuki("queue", "pause", "images", "--dsn", dsn).out == "images: was paused already\n"
    assert "finished jobs are kept for 2h 0m" in tasuki("queue", "keep", "other", "2h", "--dsn", dsn).out
    listed = tasuki("queue", "list", "--json", "--dsn", dsn).json
    assert set(listed) == {"images", "other"}
    assert listed["images"]["paused_at"] is not None
    assert (listed["images"]["due"], listed["other"]["due"], listed["other"]["keep_seconds"]) == (1, 1, 7200.0)
    table = tasuki("queue", "list", "--dsn", dsn).out.splitlines()
    assert table[0].split()[:3] == ["QUEUE", "STATE", "DUE"]
    assert table[1].split()[:2] == ["images", "paused"]
    assert "nobody works on it" in table[2]
    assert tasuki("queue", "resume", "images", "--dsn", dsn).out == "images: resumed\n"
    assert tasuki("queue", "resume", "images", "--dsn", dsn).out == "images: was not paused\n"
    assert "as long as all others" in tasuki("queue", "keep", "other", "default", "--dsn", dsn).out


def test_a_supervisor_minds_a_pause_and_is_woken_by_the_resuming(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    options = ("--poll", "10m", "--queue", "paused", "--queue", "open")
    with Supervised(dsn, *options, app="tests.support.everyday:app") as supervised:
        supervised.started()
        assert tasuki("queue", "pause", "paused", "--dsn", dsn).code == 0
        for text in "ab":
            first = jobs.add(conn, queue="paused", handler="later", payload={"text": text})
            second = jobs.add(conn, queue="open", handler="later", payload={"text": text})
            conn.execute("SELECT pg_notify('tasuki_job', 'paused 0'), pg_notify('tasuki_job', 'open 0')")
            jobs.wait_final(conn, second)
            assert jobs.status(conn, first) == "pending"
        assert tasuki("queue", "resume", "paused", "--dsn", dsn).code == 0
        assert jobs.wait_final(conn, first)["status"] == "completed"
        assert supervised.stop() == 0


# ── retention and export ──────────────────────────────────────────────────────────────────────────────────────────────


def days_ago(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def test_prune_by_hand(tasuki: Tasuki, dsn: str, conn: Conn, tmp_path: Any) -> None:
    add_day(conn, days_ago(20))
    archive(conn, 3, finished_at=days_ago(20))
    name = f"job_archive_completed_{days_ago(20):%Y%m%d}"
    config = tmp_path / "config.toml"
    config.write_text('keep-completed = "30d"\n')
    assert tasuki("prune", "--config", config, "--dsn", dsn).out == "nothing has been kept for too long\n"
    dry = tasuki("prune", "--dry-run", "--json", "--dsn", dsn).json
    assert [day["name"] for day in dry["dropped"]] == [name]
    ended = tasuki("prune", "--config", config, "--keep-completed", "7d", "--dsn", dsn)
    assert ended.code == 0
    assert ended.out.startswith(f"dropped: {name} (about ")
    assert conn.execute("SELECT to_regclass(%s)", (f"tasuki.{name}",)).fetchone() == (None,)


def test_prune_says_what_had_to_wait(tasuki: Tasuki, dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasuki_mp.cli.prune as module

    monkeypatch.setattr(module, "STATEMENT_TIMEOUT", 0.3)
    add_day(conn, days_ago(20))
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM tasuki.job_archive")
        ended = tasuki("prune", "--dsn", dsn)
    assert ended.code == ExitCode.FAILED
    assert f"postponed: job_archive_completed_{days_ago(20):%Y%m%d}, somebody has been reading" in ended.err
    assert tasuki("prune", "--dsn", dsn).code == 0


def test_a_supervisor_prunes_by_itself_and_says_so(dsn: str, conn: Conn) -> None:
    for days in (20, 40):
        add_day(conn, days_ago(days))
    with Supervised(dsn, "--keep-completed", "30d", "--keep-failed", "forever") as supervised:
        event = supervised.event("days dropped whose retention is over")
        assert event["partitions"] == f"job_archive_completed_{days_ago(40):%Y%m%d}"
        wait_for_row(conn, "SELECT 1 FROM tasuki.upkeep WHERE task = 'retention' AND ended_at IS NOT NULL")
        assert supervised.stop() == 0
    left = conn.execute("SELECT count(*) FROM pg_class WHERE relname ~ %s", (f"{days_ago(40):%Y%m%d}$",)).fetchone()
    assert left == (2,)


def test_export_writes_lines_of_json(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    add_day(conn, days_ago(3))
    old = archive(conn, 30, finished_at=days_ago(3))
    new = archive(conn, 1200, queue="images")
    (failed,) = archive(conn, 1, status="failed", error="ValueError: \x9b evil")
    jobs.add(conn)
    ended = tasuki("export", "--since", "7d", "--dsn", dsn)
    assert (ended.code, ended.err) == (0, "")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["id"] for line in lines] == [*old, *new, failed]
    assert "\x9b" not in ended.out
    assert lines[-1]["error"] == {"type": "ValueError", "message": "\x9b evil"}
    assert lines[0]["payload"] == {"n": 1}
    row = jobs.final(conn, old[0])
    assert row is not None
    assert datetime.fromisoformat(lines[0]["finished_at"]) == row["finished_at"]
    for options, number in (
        (["--since", "1d"], 1201),
        (["--since", "7d", "--until", "1d"], 30),
        (["--since", "7d", "--queue", "images"], 1200),
        (["--since", "7d", "--state", "failed"], 1),
        (["--since", "7d", "--handler", "nobody's"], 0),
    ):
        assert tasuki("export", *options, "--dsn", dsn).out.count("\n") == number


def test_large_jobs_are_exported_a_few_at_a_time(tasuki: Tasuki, dsn: str, conn: Conn) -> None:
    ids = archive(conn, 60)
    conn.execute("UPDATE tasuki.job_archive SET output = repeat('x', 4000)")
    parameters = {"queue": None, "handler": None, "states": None, "after": 0, "most": 50, "characters": 10_000}
    times = {"first": days_ago(1), "last": datetime.now(UTC)}
    rows = conn.execute(sql.query("export_jobs"), {**parameters, **times}).fetchall()
    assert [job_id for job_id, _ in rows] == ids[:3], "as many as begin within ten thousand characters"
    alone = conn.execute(sql.query("export_jobs"), {**parameters, **times, "characters": 1}).fetchall()
    assert [job_id for job_id, _ in alone] == ids[:1], "one that is larger than that comes alone"
    lines = tasuki("export", "--since", "1d", "--dsn", dsn).out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
