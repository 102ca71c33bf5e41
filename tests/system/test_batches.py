"""Batches, maps and limits with real supervisors: results in order, follow-ups once, never more at a time than allowed."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

from tasuki_mp import AsyncClient, Client, MapError
from tests.support import jobs
from tests.support.batched import alone, fat, note, picky, square
from tests.support.hooked import Supervised, supervisors
from tests.support.program import Program
from tests.support.waiting import wait_for_row, wait_until

Conn = psycopg.Connection[tuple[Any, ...]]
APP = "tests.support.batched:app"


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as it:
        yield it


def _command(dsn: str, *arguments: str) -> tuple[int, list[str]]:
    with Program("-m", "tasuki_mp", *arguments, env={"TASUKI_DSN": dsn}, stderr=subprocess.STDOUT) as program:
        code = program.wait()
        return code, program.further_lines()


def test_a_map_gives_its_results_in_order_and_cuts_quick_items_into_few_jobs(
    dsn: str, conn: Conn, client: Client
) -> None:
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        assert list(client.map(square, range(3000), progress=False)) == [n * n for n in range(3000)]
    row = conn.execute("SELECT count(*) FROM tasuki.job_archive WHERE status = 'completed'").fetchone()
    assert row is not None
    assert row[0] < 300


def test_a_map_of_large_results_ends_whatever_its_chunks(dsn: str, conn: Conn, client: Client) -> None:
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        assert [int(result) for result in client.map(fat, range(1000), progress=False)] == list(range(1000))
        assert conn.execute("SELECT FROM tasuki.job_archive WHERE status = 'failed'").fetchall() == []
        mapped = client.map(fat, range(1000), chunk=500, progress=False)
        assert [int(result) for result in mapped] == list(range(1000))
        assert [int(result) for result in client.map(fat, id=mapped.id, progress=False)] == list(range(1000))
        status = client.batch(mapped.id).wait(10)
    assert status.is_successful
    assert (status.total, status.completed) == (8, 8)


def test_a_map_gives_results_before_its_last_item_is_there(dsn: str, client: Client) -> None:
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        results = client.map(square, itertools.count(), progress=False)
        assert list(itertools.islice(results, 500)) == [n * n for n in range(500)]


def test_a_map_for_asyncio(dsn: str) -> None:
    async def use() -> None:
        async with AsyncClient(dsn) as client:
            mapped = client.map(square, range(1000), progress=False)
            assert [result async for result in mapped] == [n * n for n in range(1000)]
            again = client.map(square, id=await mapped.begin(), ordered=False, progress=False)
            assert sorted([result async for result in again]) == [n * n for n in range(1000)]
            with pytest.raises(MapError, match="there is no map"):
                await client.map(picky, id=await mapped.begin()).begin()

    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        asyncio.run(use())


def test_an_interrupted_map_for_asyncio_says_how_to_go_on(dsn: str, conn: Conn) -> None:
    async def use() -> None:
        async with AsyncClient(dsn) as client:
            mapped = client.map(square, range(3), progress=False)
            task = asyncio.create_task(anext(mapped))
            await asyncio.to_thread(wait_for_row, conn, "SELECT 1 FROM tasuki.job")
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert f"id={await mapped.begin()}" in caught.value.__notes__[0]

    asyncio.run(use())


def test_a_map_that_nobody_used_leaves_nothing(conn: Conn, client: Client) -> None:
    mapped = client.map(square, range(10))
    assert conn.execute("SELECT FROM tasuki.batch").fetchall() == []
    used = mapped.id
    assert used == mapped.id
    assert conn.execute("SELECT id FROM tasuki.batch").fetchall() == [(used,)]


def test_a_map_through_a_pool_of_one_connection(dsn: str) -> None:
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True, timeout=5) as pool:
            assert list(Client(pool).map(square, range(100), progress=False)) == [n * n for n in range(100)]


def test_a_map_in_any_order_and_of_jobs(dsn: str, client: Client) -> None:
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        results = client.map(square, (square.job(n) for n in range(50)), ordered=False, chunk=7, progress=False)
        assert sorted(results) == [n * n for n in range(50)]
        assert list(client.map(square, [], progress=False)) == []


def test_a_map_says_which_item_failed_and_goes_on_once_that_is_mended(
    dsn: str, conn: Conn, client: Client, tmp_path: Path
) -> None:
    luck = tmp_path / "luck"
    with Supervised(dsn, app=APP, env={"MAP_LUCK": str(luck)}) as supervised:
        supervised.started()
        mapped = client.map(picky, range(20), chunk=5, progress=False)
        with pytest.raises(MapError, match=r"items 10 to 14.*failed.*ValueError: thirteen"):
            list(mapped)
        luck.touch()
        assert client.batch(mapped.id).retry_failed() == 1
        assert list(client.map(picky, id=mapped.id, progress=False)) == list(range(20))
    row = conn.execute("SELECT error ->> 'traceback' FROM tasuki.job_archive WHERE status = 'failed'").fetchone()
    assert row is not None
    assert "in item 3 of the 5" in row[0]


def test_an_interrupted_map_is_taken_up_by_its_id(dsn: str, conn: Conn, client: Client) -> None:
    def interrupted() -> Iterator[int]:
        yield from range(4000)
        raise KeyboardInterrupt

    mapped = client.map(square, interrupted(), chunk=2, progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        list(mapped)
    assert f"id={mapped.id}" in caught.value.__notes__[0]
    enqueued = conn.execute("SELECT sum(jsonb_array_length(payload)) FROM tasuki.job").fetchone()
    assert enqueued is not None
    assert 0 < enqueued[0] <= 4000
    with Supervised(dsn, app=APP, procs=2) as supervised:
        supervised.started()
        again = client.map(square, range(4500), chunk=50, id=mapped.id, progress=False)
        assert list(again) == [n * n for n in range(4500)]
    with pytest.raises(MapError, match="there is no map"):
        client.map(picky, id=mapped.id)


def test_a_batch_runs_and_its_follow_up_runs_before_the_drain_ends(
    dsn: str, conn: Conn, client: Client, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    batch = client.enqueue_batch((square.job(n) for n in range(500)), name="b", on_success=note.job(str(notes)))
    with supervisors(dsn, 2, "--drain", app=APP, procs=2) as both:
        assert [supervised.wait() for supervised in both] == [0, 0]
    assert notes.read_text(encoding="utf-8") == "noted\n"
    code, lines = _command(dsn, "batch", "wait", str(batch.id), "--json")
    assert code == 0
    status = json.loads(lines[-1])
    assert (status["completed"], status["fired"]) == (500, ["complete", "success"])


def test_the_commands_for_batches(dsn: str, client: Client) -> None:
    batch = client.enqueue_batch((square.job(n) for n in range(3)), name="nightly")
    code, lines = _command(dsn, "batch", "list")
    assert code == 0
    assert any("nightly" in line and "open" in line for line in lines)
    code, lines = _command(dsn, "batch", "wait", str(batch.id), "--timeout", "10ms")
    assert (code, lines[-1]) == (8, f"tasuki-mp: batch {batch.id} has not ended in time: 3 of 3 jobs are left")
    assert (
        _command(dsn, "batch", "cancel", str(batch.id))[1][-1] == f"batch {batch.id}: 3 jobs canceled or asked to stop"
    )
    code, lines = _command(dsn, "batch", "wait", str(batch.id))
    assert code == 7
    assert any(line.split() == ["canceled", "3"] for line in lines)
    assert _command(dsn, "batch", "retry-failed", str(batch.id))[1][-1] == f"batch {batch.id}: 3 jobs enqueued again"
    code, lines = _command(dsn, "batch", "show", "999")
    assert (code, lines[-1]) == (1, "tasuki-mp: there is no batch 999")


def test_a_name_means_the_newest_batch_of_that_name(dsn: str, client: Client) -> None:
    client.enqueue_batch([square.job(1), square.job(2)], name="nightly")
    batch = client.enqueue_batch([square.job(3)], name="nightly")
    assert json.loads(_command(dsn, "batch", "show", "nightly", "--json")[1][-1])["id"] == batch.id
    assert _command(dsn, "batch", "cancel", "nightly")[1][-1] == f"batch {batch.id}: 1 job canceled or asked to stop"
    assert _command(dsn, "batch", "wait", "nightly")[0] == 7
    assert _command(dsn, "batch", "retry-failed", "nightly")[1][-1] == f"batch {batch.id}: 1 job enqueued again"
    code, lines = _command(dsn, "batch", "show", "weekly")
    assert (code, lines[-1]) == (1, "tasuki-mp: there is no batch 'weekly'")


def test_limits_hold_over_supervisors_and_lifting_them_is_heard_of(
    dsn: str, conn: Conn, client: Client, tmp_path: Path
) -> None:
    assert _command(dsn, "queue", "limit", "limited", "--max-running", "3", "--max-running-per-key", "1")[0] == 0
    tenants = itertools.cycle("abcde")
    ids = client.enqueue_many(alone.job(str(tmp_path), t).key(t) for t in itertools.islice(tenants, 100))
    with supervisors(dsn, 2, "--drain", app=APP, procs=3) as both:
        assert [supervised.wait() for supervised in both] == [0, 0]
    ends = conn.execute("SELECT status, count(*), max(attempt) FROM tasuki.job_archive GROUP BY status").fetchall()
    assert ends == [("completed", len(ids), 1)]
    assert _command(dsn, "queue", "limit", "limited")[0] == 2
    client.limit("limited", max_running=0)
    with Supervised(dsn, app=APP) as supervised:
        supervised.started()
        (job_id,) = client.enqueue_many([alone.job(str(tmp_path), "a")])
        client.limit("limited")
        wait_until(lambda: jobs.final(conn, job_id), "the end of a job whose queue is open again")
