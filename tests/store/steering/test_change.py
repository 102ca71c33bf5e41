"""Canceling, retrying, deleting, moving and rescheduling many jobs: what comes of each, and what is left alone."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import Changed, Client, JobFilter, State, Tasuki
from tasuki_mp.store import change, select
from tests.store.steering.conftest import Steer
from tests.support import jobs
from tests.support.holder import Holder
from tests.support.listening import heard, listening
from tests.support.steering import archive
from tests.support.waiting import wait_for_lock_wait

Conn = psycopg.Connection[Any]
EVERYTHING = JobFilter(queue="default")


def rows(conn: Conn, query: str) -> list[tuple[Any, ...]]:
    return conn.execute(query).fetchall()


# ── retry ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_is_a_new_job_and_the_final_one_stays(steer: Steer, conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, payload={"x": [1]}, priority=1, max_attempts=1, limits='{"timeout": 9}')
    one.end(one.lease_one(), "failed", error={"kind": "error", "message": "no"})
    before = jobs.final(conn, job_id)
    changed = steer("retry", [job_id])
    copy = changed.copies[job_id]
    assert changed == Changed(done=1, verdicts={job_id: "retried"}, copies={job_id: copy})
    assert jobs.final(conn, job_id) == before
    row = jobs.live(conn, copy)
    assert row is not None
    assert (row["retry_of"], row["attempt"], row["crashes"], row["lease_no"], row["last_error"]) == (
        job_id,
        0,
        0,
        0,
        None,
    )
    kept = ("queue", "handler", "payload", "priority", "max_attempts", "limits")
    assert before is not None
    assert {name: row[name] for name in kept} == {name: before[name] for name in kept}
    one.end(one.lease_one(), "completed", result="1")
    ended = jobs.final(conn, copy)
    assert ended is not None
    assert (ended["status"], ended["retry_of"]) == ("completed", job_id)


def test_what_is_retried(steer: Steer, conn: Conn) -> None:
    (failed,) = archive(conn, 1, status="failed")
    (canceled,) = archive(conn, 1, status="canceled")
    (done,) = archive(conn, 1, status="completed")
    pending = jobs.add(conn)
    assert steer("retry", EVERYTHING) == Changed(done=1), "those that failed, unless something else is said"
    assert steer("retry", EVERYTHING) == Changed(done=0, skipped={"retried before": 1})
    assert steer("retry", EVERYTHING, again=True).done == 1
    assert steer("retry", JobFilter(states=frozenset({State.CANCELED}))).done == 1
    changed = steer("retry", [done, canceled, failed, pending, 999_999])
    assert changed.verdicts == {
        done: "retried",
        canceled: "retried before",
        failed: "retried before",
        pending: "live",
        999_999: "unknown",
    }
    assert changed.skipped == {"live": 1, "retried before": 2, "unknown": 1}
    newest = conn.execute("SELECT max(id) FROM tasuki.job WHERE retry_of = %s", (failed,)).fetchone()
    assert newest == (changed.copies[failed],)
    with pytest.raises(ValueError, match="retry is not for jobs that are pending"):
        steer("retry", JobFilter(states=frozenset({State.PENDING})))


def test_a_retry_that_has_ended_counts_too(client: Client, conn: Conn, one: Holder) -> None:
    (failed,) = archive(conn, 1, status="failed")
    client.retry([failed])
    one.end(one.lease_one(), "failed")
    assert client.retry([failed]).verdicts == {failed: "retried before"}


def test_a_retry_goes_on_from_the_checkpoint(client: Client, conn: Conn, one: Holder) -> None:
    (failed,) = archive(conn, 1, status="failed")
    conn.execute("INSERT INTO tasuki.checkpoint (job_id, lease_no, state) VALUES (%s, 1, '{\"page\": 7}')", (failed,))
    copy = client.retry([failed]).copies[failed]
    lease = one.lease_one()
    assert (lease.id, lease.attempt, lease.checkpoint) == (copy, 1, '{"page": 7}')


def test_a_retry_takes_its_unique_key_if_that_is_free(client: Client, conn: Conn) -> None:
    def enqueue() -> int:
        row = conn.execute(
            "SELECT tasuki.enqueue('work', queue => 'default', key => 'tenant', unique_key => 'k')"
        ).fetchone()
        assert row is not None
        return int(row[0])

    first = enqueue()
    client.cancel([first])
    second = enqueue()
    client.cancel([second])
    # Two that had the key: the newer one takes it again, and then stands for it.
    changed = client.retry([first, second])
    assert changed.verdicts == {first: "key taken", second: "retried"}
    copy = changed.copies[second]
    assert enqueue() == copy
    row = jobs.live(conn, copy)
    assert row is not None
    assert (row["key"], row["unique_key"]) == ("tenant", "work:k")
    assert client.retry([first]).verdicts == {first: "key taken"}
    client.cancel([copy])
    assert rows(conn, "SELECT count(*) FROM tasuki.unique_key") == [(0,)]
    assert client.retry([first]).done == 1


def test_a_retry_within_an_interval_key_keeps_the_interval(client: Client, conn: Conn) -> None:
    conn.execute(
        "SELECT tasuki.enqueue('work', queue => 'default', unique_key => 'k', unique_for => interval '1 hour')"
    )
    (first,) = (job.id for job in client.jobs().jobs)
    client.cancel([first])
    copy = client.retry([first]).copies[first]
    assert rows(conn, "SELECT job_id, expires_at > now() + interval '59 min' FROM tasuki.unique_key") == [(copy, True)]


def test_a_retry_opens_its_batch_again(client: Client, conn: Conn, one: Holder) -> None:
    (batch,) = conn.execute(
        "INSERT INTO tasuki.batch (sealed_at, total, name) VALUES (now(), 1, 'nightly') RETURNING id"
    ).fetchone() or (0,)
    job_id = jobs.add(conn, batch_id=batch)
    one.end(one.lease_one(), "failed")
    conn.execute("SELECT tasuki.close_batch(%s)", (batch,))
    ended = rows(conn, "SELECT ended_at IS NOT NULL, failed FROM tasuki.batch")
    assert ended == [(True, 1)]
    assert client.retry(JobFilter(batch="nightly")).done == 1
    assert rows(conn, "SELECT ended_at IS NULL, failed FROM tasuki.batch") == [(True, None)]
    one.end(one.lease_one(), "completed")
    conn.execute("SELECT tasuki.close_batch(%s)", (batch,))
    assert rows(conn, "SELECT ended_at IS NOT NULL, completed, failed FROM tasuki.batch") == [(True, 1, 0)]
    listed = [job.id for job in client.jobs(JobFilter(batch=batch)).jobs]
    assert len(listed) == 2
    assert listed[-1] == job_id
    assert client.jobs(JobFilter(batch="no such batch")).jobs == []


def test_two_that_retry_at_once_make_one_copy(dsn: str, client: Client, conn: Conn) -> None:
    failed = archive(conn, 3, status="failed")
    with psycopg.connect(dsn) as other, Client(dsn) as second:
        second.retry(failed, conn=other)  # not committed yet
        answers: list[Changed] = []
        asking = threading.Thread(target=lambda: answers.append(client.retry(failed)))
        asking.start()
        wait_for_lock_wait(conn)
        other.commit()
        asking.join(timeout=90)
    assert [answer.skipped for answer in answers] == [{"retried before": 3}]
    assert rows(conn, "SELECT count(*) FROM tasuki.job") == [(3,)]


# ── delete ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_deleted_leaves_nothing_and_running_jobs_stay(steer: Steer, conn: Conn, one: Holder) -> None:
    running = jobs.add(conn)
    one.end(one.lease_one(), "retry")
    one.lease_one()
    pending = jobs.add(conn)
    (done,) = archive(conn, 1)
    for job_id in (pending, done):
        conn.execute(
            "INSERT INTO tasuki.attempt (job_id, lease_no, attempt, kind, ended_at) VALUES (%s, 1, 1, 'retry', now())",
            (job_id,),
        )
        conn.execute("INSERT INTO tasuki.checkpoint (job_id, lease_no, state) VALUES (%s, 1, '{}')", (job_id,))
    changed = steer("delete", [running, pending, done, 999_999])
    assert changed.verdicts == {running: "running", pending: "deleted", done: "deleted", 999_999: "unknown"}
    assert [jobs.status(conn, job_id) for job_id in (running, pending, done)] == ["running", None, None]
    assert rows(conn, "SELECT job_id FROM tasuki.attempt") == [(running,)]
    assert rows(conn, "SELECT job_id FROM tasuki.checkpoint") == []


def test_only_what_matches_is_deleted(steer: Steer, conn: Conn) -> None:
    jobs.fill(conn, 3)
    failed = archive(conn, 3, status="failed")
    archive(conn, 3, queue="other", status="failed")
    old = archive(conn, 1, status="failed", error="OSError: disk full")
    assert steer("delete", JobFilter(error="disk full")).done == len(old)
    assert steer("delete", JobFilter(states=frozenset({State.FAILED}), queue="default")).done == len(failed)
    assert rows(conn, "SELECT count(*) FROM tasuki.job") == [(3,)]
    assert rows(conn, "SELECT queue, count(*) FROM tasuki.job_archive GROUP BY queue") == [("other", 3)]


# ── move and reschedule ───────────────────────────────────────────────────────────────────────────────────────────────


def test_pending_jobs_move_and_their_new_queue_hears_of_it(steer: Steer, dsn: str, conn: Conn, one: Holder) -> None:
    running = jobs.add(conn)
    one.lease_one()
    pending = jobs.add(conn, scheduled_at=datetime.now(UTC) - timedelta(seconds=100))
    there = jobs.add(conn, queue="slow")
    (done,) = archive(conn, 1)
    with listening(dsn, "tasuki_job") as listener:
        changed = steer("move", [running, pending, there, done, 999_999], to="slow")
        (told,) = heard(listener, "tasuki_job")
    queue, back = told.split()
    assert queue == "slow"
    assert 100_000 <= int(back) < 200_000, "so far back has to be looked"
    assert changed.verdicts == {
        running: "running",
        pending: "moved",
        there: "there",
        done: "finished",
        999_999: "unknown",
    }
    assert rows(conn, "SELECT queue FROM tasuki.job ORDER BY id") == [("default",), ("slow",), ("slow",)]
    with pytest.raises(ValueError, match="no queue name"):
        steer("move", [pending], to="a b")


def test_what_waits_for_its_key_need_not_wait_in_another_queue(client: Client, conn: Conn) -> None:
    waiting = jobs.add(conn, key="tenant", held_by="key")
    unknown = jobs.add(conn, handler="nobody's", held_by="handler")
    assert client.move([waiting, unknown], to="slow").done == 2
    assert rows(conn, "SELECT held_by FROM tasuki.job ORDER BY id") == [(None,), ("handler",)]


def test_pending_jobs_are_due_when_it_is_said(steer: Steer, dsn: str, conn: Conn, one: Holder) -> None:
    running = jobs.add(conn)
    one.lease_one()
    first, second = jobs.add(conn), jobs.add(conn)
    at = datetime(2100, 1, 1, tzinfo=UTC)
    assert steer("reschedule", [running, first], at=at).verdicts == {running: "running", first: "rescheduled"}
    assert steer("reschedule", [second], after=timedelta(hours=1)).done == 1
    assert jobs.live(conn, first)["scheduled_at"] == at
    assert abs(jobs.live(conn, second)["scheduled_at"] - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert one.lease() == []
    with listening(dsn, "tasuki_job") as listener:
        assert steer("reschedule", JobFilter(queue="default"), after=0) == Changed(done=2)
        assert [told.split()[0] for told in heard(listener, "tasuki_job")] == ["default"]
    assert [lease.id for lease in one.lease(10)] == [first, second]


@pytest.mark.parametrize(
    "when",
    [{}, {"at": datetime(2100, 1, 1, tzinfo=UTC), "after": 1}, {"at": datetime(2100, 1, 1)}, {"after": -1}],  # noqa: DTZ001
)
def test_a_time_must_be_said_in_one_way(client: Client, when: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"only one|time zone|put off"):
        client.reschedule([1], **when)


# ── cancel ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_that_match_are_canceled(steer: Steer, dsn: str, conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2500)
    running = [lease.id for lease in one.lease(3)]
    other = jobs.add(conn, queue="other")
    with listening(dsn, "tasuki_cancel") as listener:
        assert steer("cancel_matching", JobFilter(queue="default")) == Changed(done=2500)
        assert set(heard(listener, "tasuki_cancel")) == {str(one.owner)}
    assert rows(conn, "SELECT id FROM tasuki.job ORDER BY id") == [*((job_id,) for job_id in running), (other,)]
    assert rows(conn, "SELECT status, count(*), count(DISTINCT id) FROM tasuki.job_archive GROUP BY 1") == [
        ("canceled", 2497, 2497)
    ]


def test_a_day_without_partition_gets_one(client: Client, conn: Conn) -> None:
    jobs.fill(conn, 2)
    conn.execute(f"DROP TABLE tasuki.job_archive_failed_{datetime.now(UTC):%Y%m%d}")
    assert client.cancel_matching(EVERYTHING).done == 2


# ── what somebody else holds ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "more"), [("cancel_matching", {}), ("delete", {}), ("move", {"to": "x"}), ("reschedule", {"after": 9})]
)
def test_a_locked_row_holds_up_nothing_and_is_reported(
    client: Client, dsn: str, conn: Conn, method: str, more: dict[str, Any]
) -> None:
    first, *_ = jobs.fill(conn, 5)
    with psycopg.connect(dsn) as other:
        other.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (first,))
        assert getattr(client, method)(EVERYTHING, **more) == Changed(done=4, skipped={"locked": 1})
    assert jobs.live(conn, first) is not None


def test_a_job_that_was_leased_after_it_was_listed_is_left_alone(
    client: Client, conn: Conn, one: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.fill(conn, 2)
    listed = select.page

    def page(*args: Any, **kwargs: Any) -> Any:
        found = yield from listed(*args, **kwargs)
        one.lease_one()
        return found

    monkeypatch.setattr(change, "page", page)
    assert client.delete(EVERYTHING) == Changed(done=1, skipped={"running": 1})


def test_a_dry_run_of_a_retry_leaves_out_what_was_retried_before(steer: Steer, conn: Conn) -> None:
    first, second, third = archive(conn, 3, status="failed")
    copies = steer("retry", [first, second]).copies
    wanted = Changed(done=1, skipped={"retried before": 2})
    assert steer("retry", EVERYTHING, dry_run=True) == wanted
    assert steer("retry", EVERYTHING, dry_run=True, again=True) == Changed(done=3)
    named = steer("retry", [first, second, third], dry_run=True)
    assert named.verdicts == {first: "retried before", second: "retried before", third: "retried"}
    assert named.copies == copies
    assert steer("retry", EVERYTHING) == wanted


def test_a_dry_run_says_what_would_be_done_and_does_nothing(steer: Steer, conn: Conn, one: Holder) -> None:
    running = jobs.add(conn)
    one.lease_one()
    pending = jobs.add(conn)
    (failed,) = archive(conn, 1, status="failed")
    named = [running, pending, failed, 999_999]
    assert steer("delete", named, dry_run=True).verdicts == {
        running: "running",
        pending: "deleted",
        failed: "deleted",
        999_999: "unknown",
    }
    assert steer("retry", named, dry_run=True).verdicts == {
        running: "live",
        pending: "live",
        failed: "retried",
        999_999: "unknown",
    }
    assert steer("cancel_matching", EVERYTHING, dry_run=True) == Changed(done=2)
    assert steer("move", EVERYTHING, to="x", dry_run=True) == Changed(done=1)
    assert [jobs.status(conn, job_id) for job_id in (running, pending, failed)] == ["running", "pending", "failed"]
    assert rows(conn, "SELECT count(*) FROM tasuki.job WHERE cancel_requested_at IS NOT NULL") == [(0,)]


def test_it_is_undone_with_the_caller_s_transaction(client: Client, dsn: str, conn: Conn) -> None:
    jobs.fill(conn, 3)
    with psycopg.connect(dsn) as own:
        assert client.delete(EVERYTHING, conn=own).done == 3
        own.rollback()
    assert rows(conn, "SELECT count(*) FROM tasuki.job") == [(3,)]


def test_the_application_object_has_it_all_too(dsn: str, conn: Conn) -> None:
    app = Tasuki(dsn=dsn)
    jobs.fill(conn, 2)
    assert len(app.jobs(limit=1).jobs) == 1
    assert app.pause("default") is True
    assert app.pause("default") is False
    assert [(queue.name, queue.paused_at is not None) for queue in app.queues()] == [("default", True)]
    assert app.resume("default") is True
    assert app.cancel_matching(JobFilter(handler="work")).done == 2
    app.client.close()
