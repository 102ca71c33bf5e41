"""The public interface as users write it. Never run: it must type-check under mypy strict, without a complaint."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import psycopg
import psycopg_pool

from tasuki_mp import (
    AsyncClient,
    AsyncJobHandle,
    AsyncMap,
    Backoff,
    Cancel,
    Changed,
    Client,
    Context,
    Handler,
    IdRanges,
    Job,
    JobFilter,
    JobHandle,
    JobPage,
    Queue,
    Retry,
    Snooze,
    State,
    Tasuki,
)
from tasuki_mp.testing import EnqueuedJob, Run, Sandbox, assert_enqueued, fire_ticks, run_due

app = Tasuki(modules=["shop.images"], dsn="postgresql://localhost/shop", max_payload=4096, max_result=10**6)


class Model:
    pass


@dataclass
class Stats:
    width: int
    colors: list[str]


@app.resource
def settings() -> dict[str, str]:
    return {}


@app.resource(name="model", eager=True)
def load_model(settings: dict[str, str]) -> Iterator[Model]:
    yield Model()


@app.handler
def plain(x: int, *, y: str = "") -> str:
    return y * x


@app.handler()
def empty() -> None: ...


@app.handler(
    name="thumb",
    queue="images",
    priority=0,
    max_attempts=5,
    max_crashes=1,
    backoff=Backoff(factor=2.0, cap=60.0),
    retry_on=(OSError, ConnectionError),
    fail_on=ValueError,
    fence="kill",
)
def thumbnail(path: Path, width: int = 200, *, model: Model, ctx: Context) -> Stats | Retry | Snooze | Cancel:
    if ctx.attempt > 3:
        return Cancel(f"no luck with {path}")
    if width > 1000:
        return Snooze(dt.timedelta(minutes=5))
    return Retry(after=3) if ctx.is_last_attempt else Stats(width, [])


@app.handler(backoff=lambda attempt, error: dt.timedelta(seconds=attempt))
async def fetch(url: str) -> bytes:
    return url.encode()


@app.handler
def whole(stats: Stats) -> None: ...


def still_functions(model: Model, ctx: Context) -> None:
    assert_type(plain(1, y="a"), str)
    assert_type(thumbnail(Path("a"), model=model, ctx=ctx), Stats | Retry | Snooze | Cancel)
    assert_type(plain.name, str)
    settings()
    load_model({})


def jobs() -> None:
    assert_type(plain.job(1, y="a"), Job)
    assert_type(thumbnail.job(Path("a.png"), width=3), Job)  # without what is injected
    assert_type(whole.job(Stats(1, [])), Job)
    assert_type(empty.job().after(hours=1).priority(0), Job)
    assert_type(plain.job(1).at(dt.datetime.now(dt.UTC)).after(dt.timedelta(1)).after(2.5), Job)
    handlers: list[Handler[..., Any]] = [plain, empty, thumbnail, fetch, whole]
    del handlers


def enqueueing(conn: psycopg.Connection, rows: psycopg.Connection[dict[str, Any]]) -> None:
    handle = app.enqueue(plain.job(1))
    assert_type(handle, JobHandle)
    assert_type(handle.id, int)
    assert_type(handle.status(), State | None)
    assert_type(handle.result(timeout=1, kind=Stats), Stats)
    assert_type(app.enqueue(plain.job(1), conn=conn), JobHandle)
    assert_type(app.enqueue(plain.job(1), rows), JobHandle)
    ids = app.enqueue_many((plain.job(x) for x in range(9)), conn=conn)
    assert_type(ids, IdRanges)
    assert_type(ids[0], int)
    assert_type(ids[1:], list[int])
    assert_type(list(ids), list[int])
    for job_id, verdict in app.cancel(handle.id, *ids).items():
        print(job_id + 1, verdict.upper())


def clients(pool: psycopg_pool.ConnectionPool) -> None:
    with Client() as default, Client("postgresql://localhost/shop") as named, Client(pool) as pooled:
        for client in (default, named, pooled, app.client):
            assert_type(client.enqueue(empty.job()), JobHandle)
            client.cancel([1, 2])


def steering(conn: psycopg.Connection) -> None:
    failed = JobFilter(
        handler="plain", states=frozenset({State.FAILED}), since=dt.datetime.now(dt.UTC), batch="nightly"
    )
    page = app.jobs(failed, limit=10, conn=conn)
    assert_type(page, JobPage)
    assert_type(page.jobs[0].error, str | None)
    assert_type(app.client.jobs(cursor=page.cursor).cursor, int | None)
    assert_type(app.retry(failed, dry_run=True), Changed)
    assert_type(app.retry(job.id for job in page.jobs).copies, dict[int, int])
    assert_type(app.move([1], to="slow").skipped, dict[str, int])
    assert_type(app.reschedule([1], after=dt.timedelta(hours=1), conn=conn), Changed)
    assert_type(app.delete(failed), Changed)
    assert_type(app.cancel_matching(failed), Changed)
    assert_type(app.pause("slow"), bool)
    assert_type(app.queues(), list[Queue])


async def asynchronous(conn: psycopg.AsyncConnection, pool: psycopg_pool.AsyncConnectionPool) -> None:
    async with AsyncClient() as client, AsyncClient(pool) as pooled:
        assert_type(await client.enqueue(plain.job(1), conn=conn), AsyncJobHandle)
        assert_type(await pooled.enqueue_many([plain.job(1)]), IdRanges)
        assert_type(await client.status(3), State | None)
        assert_type(await client.jobs(JobFilter(queue="a"), conn=conn), JobPage)
        assert_type(await client.retry([1, 2], again=True), Changed)
        assert_type(await client.resume("slow"), bool)
        assert_type(client.map(plain, [1]), AsyncMap)
        assert_type(await client.batch(7).retry_failed(), int)
        assert_type(await (await client.enqueue(plain.job(1))).result(kind=Stats), Stats)


def testing(conn: psycopg.Connection, tasuki: Sandbox) -> None:
    assert_type(run_due(app, conn), list[Run])
    app.schedule_job(plain.job(1), "@daily", name="stored", conn=conn)
    assert_type(fire_ticks(app, conn)[0].tick, dt.datetime)
    assert_type(tasuki.drain(tasuki.use(app), resources={"model": Model()}), list[Run])
    assert_type(assert_enqueued(conn, plain.job(1)), list[EnqueuedJob])
    assert_type(tasuki.assert_enqueued(plain, payload={"x": 1}, count=2)[0].payload, dict[str, Any])
