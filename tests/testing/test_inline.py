"""Jobs run inline: as in production as far as a test can tell, in the caller's transaction, and always the same way."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tasuki_mp import Backoff, Cancel, Client, Context, EnqueueInHandlerError, FailedJob, Job, Retry, Snooze, Tasuki
from tasuki_mp.testing import assert_enqueued, assert_not_enqueued, declare, drain, enqueued, fire_ticks, run_due
from tests.support.jobs import final, history, live

Conn = psycopg.Connection[Any]

app = Tasuki(max_result=1000)
opened: list[str] = []


@app.resource
def model() -> Iterator[str]:
    opened.append("open")
    yield "real"
    opened.append("closed")


@app.handler(queue="images", priority=1)
def thumbnail(path: str, width: int = 200) -> str:
    return f"{path}@{width}"


@app.handler
def ask(what: str, ctx: Context) -> Any:
    match what:
        case "retry":
            return Retry(after=60)
        case "snooze" if ctx.lease_no == 1:
            return Snooze(30)
        case "cancel":
            return Cancel("no longer wanted")
        case "raise":
            raise ValueError("broken")
        case "exit":
            raise SystemExit(3)
        case "large":
            return "x" * 2000
    return [ctx.job_id, ctx.attempt, ctx.is_last_attempt, ctx.queue, ctx.handler]


@app.handler
def use(model: str) -> str:
    return model


@app.handler
async def later(text: str) -> str:
    await asyncio.sleep(0)
    return text


@app.handler(backoff=Backoff(factor=100, jitter=0.5), max_attempts=3)
def count_up(ctx: Context) -> int:
    seen = (ctx.restored or 0) + 1
    ctx.checkpoint(seen)
    ctx.progress(0.5, "half")
    ctx.tmpdir.joinpath("file").write_text("x")
    if seen < 3:
        raise ValueError(f"attempt {seen}")
    return int(seen)


@app.handler
def enqueue_another() -> None:
    app.enqueue(thumbnail.job("b"))


@app.handler
def forever(ctx: Context) -> Snooze:
    return Snooze(0)


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def own(dsn: str) -> Iterator[Conn]:
    """A connection whose transaction is never committed."""
    with psycopg.connect(dsn) as connection:
        yield connection
        connection.rollback()


def test_everything_happens_in_the_caller_s_transaction(own: Conn, conn: Conn, client: Client) -> None:
    handle = client.enqueue(thumbnail.job("a"), own)
    (run,) = run_due(app, own)
    assert (run.job_id, run.handler, run.queue, run.payload) == (handle.id, "thumbnail", "images", {"path": "a"})
    assert (run.decision, run.value, run.attempt, run.exception) == ("completed", "a@200", 1, None)
    row = final(own, handle.id)
    assert row is not None
    assert (row["status"], row["result"], row["attempt"]) == ("completed", "a@200", 1)
    assert final(conn, handle.id) is None
    own.rollback()
    assert final(conn, handle.id) is None


def test_the_order_is_priority_then_time_then_id(own: Conn, client: Client) -> None:
    now = dt.datetime.now(dt.UTC)
    jobs = [
        thumbnail.job("late").at(now - dt.timedelta(seconds=1)),
        thumbnail.job("early").at(now - dt.timedelta(seconds=2)),
        ask.job("first").priority(0),
        thumbnail.job("early too").at(now - dt.timedelta(seconds=2)),
        thumbnail.job("future").after(hours=1),
    ]
    client.enqueue_many(jobs, own)
    assert [run.payload for run in run_due(app, own)] == [
        {"what": "first"},
        {"path": "early"},
        {"path": "early too"},
        {"path": "late"},
    ]
    assert [job.payload for job in enqueued(own)] == [{"path": "future"}]
    assert [run.value for run in run_due(app, own, now=now + dt.timedelta(hours=2))] == ["future@200"]


@pytest.mark.parametrize(
    ("what", "decision", "delay", "status"),
    [
        ("retry", "retry", 60.0, "pending"),
        ("snooze", "snooze", 30.0, "pending"),
        ("cancel", "canceled", 0.0, "canceled"),
        ("raise", "retry", 1.0, "pending"),
        ("exit", "retry", 1.0, "pending"),
        ("large", "failed", 0.0, "failed"),
    ],
)
def test_what_a_handler_asks_for(
    own: Conn, client: Client, what: str, decision: str, delay: float, status: str
) -> None:
    handle = client.enqueue(ask.job(what), own)
    (run,) = run_due(app, own)
    assert (run.decision, run.delay) == (decision, delay)
    assert (run.exception is None) == (what not in {"raise", "exit", "large"})
    assert handle.status(own) == status


def test_retries_wait_for_their_time_and_drain_lets_it_pass(own: Conn, client: Client) -> None:
    handle = client.enqueue(count_up.job(), own)
    assert [run.decision for run in run_due(app, own)] == ["retry"]
    assert run_due(app, own) == []
    runs = drain(app, own)
    assert [(run.attempt, run.decision, run.value) for run in runs] == [(2, "retry", None), (3, "completed", 3)]
    assert [row["error"]["message"] for row in history(own, handle.id)] == ["attempt 1", "attempt 2"]
    assert own.execute("SELECT count(*) FROM tasuki.checkpoint").fetchone() == (0,)


def test_the_last_attempt_is_the_last(own: Conn, client: Client) -> None:
    handle = client.enqueue(ask.job("raise"), own)
    assert [run.decision for run in drain(app, own)] == ["retry"] * 4 + ["failed"]
    row = final(own, handle.id)
    assert row is not None
    assert (row["attempt"], row["error"]["type"], row["error"]["message"]) == (5, "ValueError", "broken")


def test_exceptions_are_raised_on_request_and_recorded_all_the_same(own: Conn, client: Client) -> None:
    handle = client.enqueue(ask.job("raise"), own)
    with pytest.raises(ValueError, match="broken"):
        run_due(app, own, raises=True)
    assert len(history(own, handle.id)) == 1


def test_resources_are_built_closed_and_replaced(own: Conn, client: Client) -> None:
    opened.clear()
    client.enqueue_many([use.job(), use.job()], own)
    assert [run.value for run in run_due(app, own)] == ["real", "real"]
    assert opened == ["open", "closed"]
    client.enqueue(use.job(), own)
    assert [run.value for run in run_due(app, own, resources={"model": "fake"})] == ["fake"]
    assert opened == ["open", "closed"]
    with pytest.raises(ValueError, match="no resource named modle"):
        run_due(app, own, resources={"modle": "fake"})


def test_async_handlers(own: Conn, client: Client) -> None:
    client.enqueue(later.job("x"), own)
    assert [run.value for run in run_due(app, own)] == ["x"]


def test_what_a_handler_wrote_before_it_raised_is_taken_back(own: Conn, client: Client) -> None:
    shop = Tasuki()

    @shop.handler(max_attempts=1)
    def write(sql: str) -> None:
        own.execute("INSERT INTO written VALUES (1)")
        own.execute(sql)

    own.execute("CREATE TABLE written (id integer)")
    client.enqueue_many([write.job("SELECT 1"), write.job("SELECT 1/0")], own)
    assert [run.decision for run in run_due(shop, own)] == ["completed", "failed"]
    assert own.execute("SELECT count(*) FROM written").fetchone() == (1,)


def test_enqueueing_inside_a_handler_is_refused_as_in_production(own: Conn, client: Client) -> None:
    client.enqueue(enqueue_another.job(), own)
    (run,) = run_due(app, own)
    assert isinstance(run.exception, EnqueueInHandlerError)
    assert_not_enqueued(own, thumbnail)


def test_jobs_that_never_end_are_an_error(own: Conn, client: Client) -> None:
    client.enqueue(forever.job(), own)
    with pytest.raises(RuntimeError, match="more than 20 runs, the last of 'forever'"):
        drain(app, own, limit=20)


def test_queues_with_limits_and_paused_ones(own: Conn, client: Client) -> None:
    own.execute("INSERT INTO tasuki.queue (name, max_running) VALUES ('images', 1)")
    own.execute("INSERT INTO tasuki.queue (name, paused_at) VALUES ('default', now())")
    client.enqueue_many([thumbnail.job("a"), thumbnail.job("b"), use.job()], own)
    assert [run.value for run in run_due(app, own)] == ["a@200", "b@200"]
    assert_enqueued(own, use)


def test_batches_end_with_their_last_job(own: Conn, client: Client) -> None:
    batch = client.enqueue_batch([thumbnail.job("a"), thumbnail.job("b")], own, on_success=later.job("done"))
    assert [run.value for run in run_due(app, own)] == ["a@200", "b@200", "done"]
    assert batch.status(own).is_successful


def test_follow_up_jobs_come_with_the_end_of_the_job_that_asked_for_them(own: Conn, client: Client) -> None:
    shop = Tasuki()

    @shop.handler
    def note(text: str) -> str:
        return text

    @shop.handler(max_attempts=1, on_failed="mourn")
    def split(count: int, ctx: Context) -> None:
        for number in range(count):
            ctx.enqueue(note.job(str(number)))
        ctx.enqueue(note.job("unique").unique("only"))
        if count == 0:
            raise ValueError("nothing to split")

    @shop.handler
    def produce(count: int) -> Iterator[Job]:
        for number in range(count):
            yield note.job(f"made {number}")

    @shop.handler
    def mourn(failure: FailedJob) -> str:
        return failure.handler

    client.enqueue_many([split.job(2), produce.job(1500)], own)
    runs = run_due(shop, own, limit=2000)
    assert [run.decision for run in runs] == ["completed"] * 1505
    assert [run.value for run in runs[2:5]] == ["0", "1", "unique"]
    client.enqueue(split.job(0), own)
    failed, mourned = run_due(shop, own)
    assert (failed.decision, mourned.handler, mourned.value) == ("failed", "mourn", "split")
    assert enqueued(own) == []


def test_jobs_of_others_are_left_alone(own: Conn, client: Client) -> None:
    other = Tasuki()

    @other.handler
    def elsewhere() -> None: ...

    client.enqueue(elsewhere.job(), own)
    assert drain(app, own) == []
    assert_enqueued(own, "elsewhere", count=1)


def test_handlers_that_are_declared_can_be_enqueued_from_sql(own: Conn) -> None:
    declare(app, own)
    row = own.execute("SELECT tasuki.enqueue('thumbnail', '{\"path\": \"sql\"}')").fetchone()
    assert row is not None
    found = live(own, row[0])
    assert found is not None
    assert (found["queue"], found["priority"]) == ("images", 1)
    assert [run.value for run in run_due(app, own)] == ["sql@200"]


def test_assertions_say_what_waits(own: Conn, client: Client) -> None:
    client.enqueue_many([thumbnail.job("a"), thumbnail.job("b", width=3).priority(0)], own)
    assert [job.payload for job in assert_enqueued(own, thumbnail, count=2)] == [
        {"path": "a"},
        {"path": "b", "width": 3},
    ]
    assert_enqueued(own, thumbnail.job("a"))
    assert_enqueued(own, "thumbnail", payload={"width": 3}, queue="images", priority=0, count=1)
    assert_not_enqueued(own, use)
    assert_not_enqueued(own, thumbnail, payload={"path": "c"})
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(own, thumbnail, payload={"path": "c"})
    assert "expected at least one job of thumbnail with payload {'path': 'c'}; 0 of those that wait fit:" in str(
        caught.value
    )
    assert 'thumbnail {"path":"b","width":3} (queue \'images\', priority 0' in str(caught.value)
    with pytest.raises(AssertionError, match="expected 1 job of thumbnail; 2 of those that wait fit"):
        assert_enqueued(own, thumbnail, count=1)


def test_a_unique_key_that_is_taken_fails_the_job_that_asked_to_hear_of_it(own: Conn, client: Client) -> None:
    shop = Tasuki()

    @shop.handler
    def note(number: int) -> int:
        return number

    @shop.handler(max_attempts=1)
    def insist(ctx: Context) -> None:
        ctx.enqueue(note.job(1))
        ctx.enqueue(note.job(2).unique("two", on_conflict="raise"))

    client.enqueue(insist.job(), own)
    assert [run.value for run in run_due(shop, own)] == [None, 1, 2]
    client.enqueue(note.job(3).unique("two").after(hours=1), own)
    client.enqueue(insist.job(), own)
    (run,) = run_due(shop, own)
    assert (run.decision, type(run.exception).__name__) == ("failed", "ConflictError")
    assert_enqueued(own, note, count=1)


# ── the test's clock ──────────────────────────────────────────────────────────────────────────────────────────────────

planned = Tasuki()


@planned.handler
def leaf(name: str) -> str:
    return name


@planned.schedule("every 1h", name="hourly")
def sweep(tick: dt.datetime) -> Iterator[Job]:
    yield leaf.job(f"{tick:%H:%M}").after(hours=1)


planned.schedule_job(leaf.job("daily"), "@daily", name="daily")


@planned.handler(backoff=Backoff(factor=100), max_attempts=2)
def flaky(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise ValueError("once")
    return ctx.attempt


def test_ticks_fire_in_the_caller_s_transaction_and_what_they_yield_comes_by_the_same_clock(
    own: Conn, conn: Conn
) -> None:
    assert fire_ticks(planned, own) == []
    declared = own.execute("SELECT decided_until FROM tasuki.schedule WHERE name = 'hourly'").fetchone()
    assert declared is not None
    start = declared[0].astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    now = start + dt.timedelta(hours=1, seconds=1)
    ticks = fire_ticks(planned, own, now=now)
    (hourly,) = [tick for tick in ticks if tick.schedule == "hourly"]
    assert (hourly.tick, hourly.verdict) == (start + dt.timedelta(hours=1), "fired")
    assert fire_ticks(planned, own, now=now) == []
    assert [run.job_id for run in run_due(planned, own, now=now) if run.handler == "sweep"] == [hourly.job_id]
    assert run_due(planned, own, now=now + dt.timedelta(minutes=59)) == []
    (run,) = run_due(planned, own, now=now + dt.timedelta(minutes=61))
    assert run.value == f"{hourly.tick:%H:%M}"
    assert conn.execute("SELECT FROM tasuki.schedule").fetchall() == []


def test_ticks_that_are_too_late_are_one(own: Conn) -> None:
    declare(planned, own)
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=10)
    at = now.replace(minute=30)
    assert sorted(tick.schedule for tick in fire_ticks(planned, own, now=at)) == ["daily", "hourly"]


def test_another_attempt_waits_by_the_test_s_clock(own: Conn, client: Client) -> None:
    client.enqueue(flaky.job(), own)
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=8)
    (first,) = run_due(planned, own, now=now)
    assert (first.decision, first.delay > 60) == ("retry", True)
    assert run_due(planned, own, now=now + dt.timedelta(seconds=first.delay - 5)) == []
    (second,) = run_due(planned, own, now=now + dt.timedelta(seconds=first.delay + 5))
    assert second.value == 2


def test_what_a_batch_is_followed_by_runs_by_the_same_clock(own: Conn, client: Client) -> None:
    now = dt.datetime.now(dt.UTC)
    client.enqueue_batch([leaf.job("one").at(now)], own, on_success=leaf.job("after"))
    assert [run.value for run in run_due(planned, own, now=now + dt.timedelta(seconds=5))] == ["one", "after"]
