"""What finish writes for each way an attempt can end, and the verdicts of sending it again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import store
from tasuki_mp.outcome import ErrorInfo, ErrorKind, SettledKind
from tests.support import jobs
from tests.support.holder import Holder, item

Conn = psycopg.Connection[tuple[Any, ...]]

FINAL: list[SettledKind] = ["completed", "failed", "canceled"]
AGAIN: list[SettledKind] = ["retry", "snooze", "release"]
BOOM = ErrorInfo(kind=ErrorKind.ERROR, type="ValueError", message="bo\"om\\ {x}, 'NULL'", traceback="line 1\nline 2")


@pytest.fixture(params=[*FINAL, *AGAIN])
def kind(request: pytest.FixtureRequest) -> SettledKind:
    value: SettledKind = request.param
    return value


def test_completed_is_archived_with_everything(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, payload={"a": 1}, priority=1, max_attempts=3)
    before = jobs.live(conn, job_id)
    lease = one.lease_one()
    verdict = one.end(
        lease, "completed", result='{"r": [1, "ü"]}', usage='{"host": "h", "pid": 7}', output="printed\n", ran_for=2.0
    )
    assert verdict == ("applied", "completed")
    assert jobs.live(conn, job_id) is None
    row = jobs.final(conn, job_id)
    assert row is not None
    assert before is not None
    kept = ("handler", "queue", "payload", "max_attempts", "priority", "created_at", "scheduled_at")
    assert {name: row[name] for name in kept} == {name: before[name] for name in kept}
    assert (row["status"], row["attempt"], row["crashes"], row["lease_no"], row["owner"]) == (
        "completed",
        1,
        0,
        1,
        one.owner,
    )
    assert (row["result"], row["error"], row["usage"]) == ({"r": [1, "ü"]}, None, {"host": "h", "pid": 7})
    assert row["output"] == "printed\n"
    assert row["finished_at"] - row["started_at"] == timedelta(seconds=2)
    assert abs(row["finished_at"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert jobs.history(conn, job_id) == []


def test_failed_and_canceled_are_archived_with_their_error(conn: Conn, one: Holder) -> None:
    ids = jobs.fill(conn, 2)
    crashed, canceled = one.lease(2)
    assert one.end(crashed, "failed", error=BOOM, is_crash=True, result='"dropped"') == ("applied", "failed")
    assert one.end(canceled, "canceled") == ("applied", "canceled")
    first, second = (jobs.final(conn, job_id) for job_id in ids)
    assert first is not None
    assert first["error"] == {
        "kind": "error",
        "type": "ValueError",
        "message": BOOM.message,
        "traceback": BOOM.traceback,
    }
    assert (first["crashes"], first["result"], first["output"], first["started_at"]) == (1, None, None, None)
    assert second is not None
    assert second["error"]["kind"] == "canceled"


def test_a_retry_waits_and_keeps_its_history(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn)
    lease = one.lease_one()
    assert one.end(lease, "retry", error=BOOM, delay=90.0, is_crash=True, output="o", ran_for=1.0) == (
        "applied",
        "retry",
    )
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["attempt"], row["crashes"], row["lease_no"]) == ("pending", 1, 1, 1)
    assert (row["owner"], row["lease_expires_at"], row["started_at"], row["pid"]) == (None, None, None, None)
    assert row["last_error"]["message"] == BOOM.message
    assert 80 < (row["scheduled_at"] - datetime.now(UTC)).total_seconds() <= 90
    (past,) = jobs.history(conn, job_id)
    assert (past["lease_no"], past["attempt"], past["kind"], past["owner"]) == (1, 1, "retry", one.owner)
    assert (past["error"]["type"], past["output"]) == ("ValueError", "o")
    assert past["ended_at"] - past["started_at"] == timedelta(seconds=1)


def test_snooze_and_release_give_the_attempt_back(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, last_error='{"message": "earlier"}')
    due = (jobs.live(conn, job_id) or {})["scheduled_at"]
    one.end(one.lease_one(), "release")
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["attempt"], row["lease_no"], row["scheduled_at"]) == (0, 1, due), "its place in the queue is kept"
    one.end(one.lease_one(), "snooze", delay=3600.0)
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["attempt"], row["lease_no"]) == (0, 2)
    assert row["scheduled_at"] > datetime.now(UTC) + timedelta(minutes=50)
    assert row["last_error"] == {"message": "earlier"}
    assert [past["kind"] for past in jobs.history(conn, job_id)] == ["release", "snooze"]


def test_a_job_may_be_put_off_by_a_hundred_years(conn: Conn, one: Holder) -> None:
    jobs.add(conn)
    assert one.end(one.lease_one(), "snooze", delay=36_525 * 86_400.0) == ("applied", "snooze")


def test_crashes_add_up(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn)
    for crashes in (1, 2):
        one.end(one.lease_one(), "retry", error=BOOM, is_crash=True)
        assert (jobs.live(conn, job_id) or {})["crashes"] == crashes
    lease = one.lease_one()
    assert lease.crashes == 2
    one.end(lease, "failed", is_crash=True)
    assert (jobs.final(conn, job_id) or {})["crashes"] == 3


def test_a_mixture_is_one_statement(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 60)
    leases = one.lease(60)
    kinds = [(FINAL + AGAIN)[n % 6] for n in range(60)]
    items = [
        item(lease, kind, result=f'"{lease.id}"', delay=1000.0 + n, is_crash=kind == "retry", output=f"from {lease.id}")
        for n, (lease, kind) in enumerate(zip(leases, kinds, strict=True))
    ]
    answers = one.finish(*reversed(items))
    assert {(answer.id, answer.verdict, answer.kind) for answer in answers} == {
        (lease.id, "applied", kind) for lease, kind in zip(leases, kinds, strict=True)
    }
    for n, (lease, kind) in enumerate(zip(leases, kinds, strict=True)):
        if kind in FINAL:
            row = jobs.final(conn, lease.id)
            assert row is not None
            assert (row["status"], row["output"]) == (kind, f"from {lease.id}")
            assert row["result"] == (str(lease.id) if kind == "completed" else None)
        else:
            row = jobs.live(conn, lease.id)
            assert row is not None
            assert abs((row["scheduled_at"] - datetime.now(UTC)).total_seconds() - 1000 - n) < 30
            assert row["crashes"] == (kind == "retry")
            assert [past["kind"] for past in jobs.history(conn, lease.id)] == [kind]


def test_sending_it_again_is_a_duplicate_and_changes_nothing(conn: Conn, one: Holder, kind: SettledKind) -> None:
    job_id = jobs.add(conn)
    lease = one.lease_one()
    assert one.end(lease, kind, error=BOOM) == ("applied", kind)
    before = (jobs.live(conn, job_id), jobs.final(conn, job_id), jobs.history(conn, job_id))
    assert one.end(lease, kind, error=BOOM, lease_age=5.0) == ("duplicate", kind)
    assert one.end(lease, "completed") == ("duplicate", kind), "whatever it says the second time"
    assert (jobs.live(conn, job_id), jobs.final(conn, job_id), jobs.history(conn, job_id)) == before


def test_a_retry_sent_again_while_the_next_attempt_runs_is_a_duplicate(conn: Conn, one: Holder, two: Holder) -> None:
    jobs.add(conn)
    lease = one.lease_one()
    one.end(lease, "retry")
    after = two.lease_one()
    assert one.end(lease, "retry") == ("duplicate", "retry")
    assert two.end(after, "completed") == ("applied", "completed")
    assert one.end(lease, "retry") == ("duplicate", "retry")


def test_after_a_rescue_it_is_stale(conn: Conn, one: Holder, two: Holder, kind: SettledKind) -> None:
    job_id = jobs.add(conn)
    lease = one.lease_one()
    jobs.expire(conn, job_id)
    assert two.rescue(one.owner) == ["pending"]
    assert one.end(lease, kind) == ("stale", kind), "while it is pending"
    again = two.lease_one()
    assert one.end(lease, kind) == ("stale", kind), "while somebody else runs it"
    assert two.end(again, "completed", result='"theirs"') == ("applied", "completed")
    assert one.end(lease, kind) == ("stale", kind), "and once it is finished"
    assert (jobs.final(conn, job_id) or {})["result"] == "theirs"


def test_a_rescue_that_ended_the_job_makes_it_stale(conn: Conn, one: Holder, two: Holder) -> None:
    job_id = jobs.add(conn, max_attempts=1)
    lease = one.lease_one()
    jobs.expire(conn, job_id)
    assert two.rescue(one.owner) == ["failed"]
    assert one.end(lease, "completed") == ("stale", "completed")
    assert jobs.status(conn, job_id) == "failed"


def test_a_stranger_can_finish_nothing(conn: Conn, one: Holder, two: Holder, kind: SettledKind) -> None:
    job_id = jobs.add(conn)
    lease = one.lease_one()
    assert two.end(lease, kind) == ("stale", kind)
    assert jobs.status(conn, job_id) == "running"
    assert one.end(lease, kind) == ("applied", kind)
    assert two.end(lease, kind) == ("stale", kind)


def test_a_lease_that_never_was_is_stale(one: Holder, conn: Conn) -> None:
    jobs.add(conn)
    lease = one.lease_one()
    answers = one.finish(item(lease, "completed"), item(lease, "completed"))
    assert sorted(answer.verdict for answer in answers) == ["applied", "duplicate"], "twice in one call"


def test_an_archive_row_is_found_however_long_the_job_ran(conn: Conn, one: Holder) -> None:
    jobs.add(conn)
    lease = one.lease_one()
    one.end(lease, "completed")
    conn.execute("UPDATE tasuki.job_archive SET finished_at = finished_at - interval '10 hours'")
    assert one.end(lease, "completed", lease_age=36_000.0) == ("duplicate", "completed")


def test_a_locked_row_waits_and_the_rest_of_the_batch_does_not(dsn: str, conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 3)
    leases = one.lease(3)
    items = [item(lease, kind) for lease, kind in zip(leases, ("completed", "retry", "failed"), strict=True)]
    with psycopg.connect(dsn) as admin:
        admin.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (leases[1].id,))
        answers = {answer.id: answer.verdict for answer in one.finish(*items)}
        assert answers == {leases[0].id: "applied", leases[1].id: "again", leases[2].id: "applied"}
    answers = {answer.id: answer.verdict for answer in one.finish(*items)}
    assert answers == {leases[0].id: "duplicate", leases[1].id: "applied", leases[2].id: "duplicate"}


def test_an_accepted_cancel_wins_over_going_again_and_loses_against_an_end(conn: Conn, one: Holder) -> None:
    ids = jobs.fill(conn, 6)
    leases = one.lease(6)
    for job_id in ids:
        assert jobs.cancel(conn, job_id) == "requested"
    items = [
        item(lease, kind, error=BOOM if kind == "retry" else None)
        for lease, kind in zip(leases, FINAL + AGAIN, strict=True)
    ]
    expected = ["completed", "failed", "canceled", "canceled", "canceled", "canceled"]
    answers = one.finish(*items)
    assert [(answer.verdict, answer.kind) for answer in answers] == [("applied", status) for status in expected]
    assert [jobs.status(conn, job_id) for job_id in ids] == expected
    errors = [(jobs.final(conn, job_id) or {})["error"] for job_id in ids[3:]]
    assert errors[0]["type"] == "ValueError"
    assert [error["kind"] for error in errors[1:]] == ["canceled", "canceled"]
    assert [jobs.history(conn, job_id) for job_id in ids] == [[]] * 6
    again = one.finish(*items)
    assert [(answer.verdict, answer.kind) for answer in again] == [("duplicate", status) for status in expected]


@pytest.mark.parametrize(
    ("result", "sqlstate"), [('"\\u0000"', "22P05"), ("NaN", "22P02"), ('"\x00"', "22021"), ('"\\ud800"', "22P02")]
)
def test_what_postgres_cannot_store_is_refused_as_data_with_nothing_written(
    conn: Conn, one: Holder, result: str, sqlstate: str
) -> None:
    jobs.fill(conn, 2)
    good, bad = one.lease(2)
    with pytest.raises(psycopg.Error) as raised:
        one.finish(item(good, "completed"), item(bad, "completed", result=result))
    assert raised.value.sqlstate == sqlstate
    assert jobs.status(conn, good.id) == "running"
    assert one.end(good, "completed") == ("applied", "completed")


def test_a_missing_partition_is_told_from_a_bad_row(conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 2)
    first, second = one.lease(2)
    today = datetime.now(UTC).strftime("%Y%m%d")
    conn.execute(f"DROP TABLE tasuki.job_archive_completed_{today}")
    conn.execute(f"DROP TABLE tasuki.attempt_{today}")
    for lease, kind in ((first, "completed"), (second, "retry")):
        with pytest.raises(psycopg.errors.CheckViolation) as raised:
            one.finish(item(lease, kind))
        assert not raised.value.diag.constraint_name
    assert one.call(store.ensure_partitions) == 2
    assert one.end(first, "completed") == ("applied", "completed")
    assert one.end(second, "retry") == ("applied", "retry")
