"""Lists of jobs: which match, in pages, over live and finished ones, and how little of the tables is read for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, JobFilter, State, sql
from tasuki_mp.store import select
from tasuki_mp.store.connect import connect
from tasuki_mp.store.steps import Rows, Step, drive
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.steering import archive

Conn = psycopg.Connection[Any]


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as it:
        yield it


def ids(client: Client, **wanted: Any) -> list[int]:
    return [job.id for job in client.jobs(JobFilter(**wanted)).jobs]


def test_live_and_finished_jobs_in_one_list_newest_first(client: Client, conn: Conn, one: Holder) -> None:
    failed = jobs.add(conn)
    one.end(one.lease_one(), "failed", error={"kind": "error", "type": "ValueError", "message": "no such \x1b[31mfile"})
    running = jobs.add(conn)
    one.lease_one()
    held = jobs.add(conn, held_by="handler", handler="nobody's")
    page = client.jobs()
    assert [(job.id, job.state, job.held_by) for job in page.jobs] == [
        (held, "pending", "handler"),
        (running, "running", None),
        (failed, "failed", None),
    ]
    assert page.cursor is None
    assert page.jobs[2].error == "ValueError: no such \x1b[31mfile"
    assert page.jobs[2].finished_at is not None


def test_filters(client: Client, conn: Conn) -> None:
    now = datetime.now(UTC)
    old = now - timedelta(hours=20)
    pending = jobs.add(conn, queue="a", handler="x", created_at=old)
    other = jobs.add(conn, queue="b", handler="x")
    (lost,) = archive(conn, 1, queue="a", handler="x", status="failed", error="Lost: the Supervisor", finished_at=old)
    (done,) = archive(conn, 1, queue="b", handler="y", status="completed", created_at=old)
    assert ids(client, queue="a") == [lost, pending]
    assert ids(client, handler="x") == [lost, other, pending]
    assert ids(client, states=frozenset({State.PENDING})) == [other, pending]
    assert ids(client, states=frozenset({State.COMPLETED, State.FAILED})) == [done, lost]
    assert ids(client, since=now - timedelta(hours=1)) == [done, other], "finished counts by its end"
    assert ids(client, error="lost: the super") == [lost]
    assert ids(client, error="%") == []
    assert ids(client, queue="a", states=frozenset({State.FAILED}), error="x") == []


@pytest.mark.parametrize("wanted", [{}, {"queue": "a"}, {"states": frozenset({State.FAILED, State.PENDING})}])
def test_pages_hold_every_job_once_however_few_rows_a_statement_looks_at(
    client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    monkeypatch.setattr(select, "_EXAMINE", 4)
    for queue in ("a", "b", "a"):
        jobs.fill(conn, 5, queue=queue)
        archive(conn, 7, queue=queue, status="failed")
        archive(conn, 6, queue="b", status="completed")
    everything = [job.id for job in client.jobs(JobFilter(**wanted), limit=1000).jobs]
    assert everything == sorted(everything, reverse=True)
    counts = {(): 54, ("queue",): 24, ("states",): 36}
    assert len(everything) == len(set(everything)) == counts[tuple(wanted)]
    paged: list[int] = []
    cursor = None
    while True:
        page = client.jobs(JobFilter(**wanted), limit=5, cursor=cursor)
        paged += [job.id for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break
    assert paged == everything


def test_a_page_has_a_size(client: Client) -> None:
    for limit in (0, 10_001):
        with pytest.raises(ValueError, match="1 to 10000"):
            client.jobs(limit=limit)


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────

MANY = 100_000


def explained(conn: Conn, which: JobFilter, *, limit: int = 50, cursor: int | None = None) -> tuple[int, int, str]:
    """How many statements the page takes, the most rows that one of them reads from a table, and all their plans."""
    plans: list[str] = []
    most = 0

    def steps() -> Any:
        nonlocal most
        inner = select.page(which, limit=limit, cursor=cursor)
        step = next(inner)
        try:
            while True:
                assert isinstance(step, Step)
                explain = b"EXPLAIN (ANALYZE, TIMING off, FORMAT json) " + step.query  # type: ignore[operator]
                plan = (yield Step(explain, step.parameters))[0][0][0]["Plan"]
                most = max([most, *(int(node["Actual Rows"]) for node in nodes(plan) if "Relation Name" in node)])
                plans.append(str(plan))
                rows: Rows = yield step
                step = inner.send(rows)
        except StopIteration as stop:
            return stop.value

    drive(conn, steps())
    return len(plans), most, "\n".join(plans)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_lists_read_what_they_show_on_two_hundred_thousand_rows(dsn: str, conn: Conn) -> None:
    conn.execute("ALTER TABLE tasuki.job SET (autovacuum_enabled = off)")
    archive(conn, MANY, queue="images", handler="thumbnail", status="completed")
    jobs.fill(conn, MANY, queue="images", handler="thumbnail")
    rare = jobs.add(conn, queue="rare")
    (failed,) = archive(conn, 1, status="failed", handler="thumbnail")
    with psycopg.connect(dsn, autocommit=True) as plain, connect(dsn, name="list") as ours:
        for analysed in (False, True):
            if analysed:
                conn.execute("ANALYZE tasuki.job")
                conn.execute("ANALYZE tasuki.job_archive")
            # Unprepared, with settings of our own or (once the planner has seen the tables) a caller's.
            for viewer in (ours, plain) if analysed else (ours,):
                statements, read, plan = explained(viewer, JobFilter())
                assert (statements, read) == (1, 50)
                assert "Seq Scan" not in plan

                statements, read, _ = explained(
                    viewer, JobFilter(states=frozenset({State.FAILED}), handler="thumbnail")
                )
                assert (statements, read) == (1, 1), "the days of completed jobs are not opened"

                statements, read, _ = explained(viewer, JobFilter(queue="rare"), limit=1)
                assert (statements, read) == (1, 20_000), "it is among the newest"

                statements, read, _ = explained(viewer, JobFilter(queue="rare"), limit=2)
                assert read <= 20_000
                assert statements <= 2 * MANY / 20_000 + 2
    assert failed > rare


def test_days_that_can_t_be_meant_are_not_opened(conn: Conn) -> None:
    conn.execute("SELECT tasuki.ensure_partitions(30)")
    parameters = {
        **JobFilter(since=datetime.now(UTC) + timedelta(days=20)).parameters,
        "before": None,
        "examine": 10,
        "limit": 10,
    }
    rows = conn.execute(b"EXPLAIN " + sql.query("list_jobs"), parameters, prepare=False).fetchall()
    plan = "\n".join(line for (line,) in rows)
    near = (datetime.now(UTC) + timedelta(days=19)).strftime("%Y%m%d")
    far = (datetime.now(UTC) + timedelta(days=25)).strftime("%Y%m%d")
    assert far in plan
    assert near not in plan
