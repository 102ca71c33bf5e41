"""Every pair of statements that can meet at one row, with the second committed between the first's snapshot and its lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tasuki_mp.store import keep as keeping
from tasuki_mp.store.keep import KeepItem, keep
from tests.support import jobs
from tests.support.gate import gated
from tests.support.holder import Holder, item
from tests.support.waiting import wait_for_lock_wait

Conn = psycopg.Connection[tuple[Any, ...]]
MonkeyPatch = pytest.MonkeyPatch


def test_finish_and_a_cancel_request(dsn: str, conn: Conn, one: Holder, monkeypatch: MonkeyPatch) -> None:
    retried, completed = jobs.fill(conn, 2)
    leases = one.lease(2)
    with gated(dsn, monkeypatch, "FINISH") as gate:
        answers = gate.run(lambda: one.finish(item(leases[0], "retry"), item(leases[1], "completed")))
        assert [jobs.cancel(conn, retried), jobs.cancel(conn, completed)] == ["requested", "requested"]
        gate.open()
        assert {(answer.verdict, answer.kind) for answer in answers.result()} == {
            ("applied", "canceled"),
            ("applied", "completed"),
        }
    assert (jobs.status(conn, retried), jobs.status(conn, completed)) == ("canceled", "completed")


@pytest.mark.parametrize("kind", ["completed", "failed", "retry", "release"])
def test_finish_and_a_heartbeat(dsn: str, conn: Conn, one: Holder, monkeypatch: MonkeyPatch, kind: Any) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    with gated(dsn, monkeypatch, "FINISH") as gate:
        answer = gate.run(lambda: one.end(lease, kind))
        assert one.beat(lease) == ["held"]
        gate.open()
        assert answer.result() == ("applied", kind)
    expected = {"retry": "pending", "release": "pending"}.get(kind, kind)
    assert jobs.status(conn, lease.id) == expected


@pytest.mark.parametrize("kind", ["completed", "failed", "retry", "release"])
def test_finish_and_a_rescue(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch, kind: Any
) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    jobs.expire(conn, lease.id)
    with gated(dsn, monkeypatch, "FINISH") as gate:
        answer = gate.run(lambda: one.end(lease, kind))
        assert two.rescue(one.owner) == ["pending"]
        again = two.lease_one()
        gate.open()
        assert answer.result() == ("stale", kind)
    assert jobs.status(conn, lease.id) == "running"
    assert two.end(again, "completed") == ("applied", "completed")


def test_finish_and_the_same_finish_from_a_connection_given_up(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch
) -> None:
    jobs.fill(conn, 2)
    leases = one.lease(2)
    items = [item(leases[0], "completed"), item(leases[1], "retry", delay=60.0)]
    with gated(dsn, monkeypatch, "FINISH") as gate:
        # The reply is long in coming, so the outbox sends it again over another connection; then the first goes through.
        first = gate.run(lambda: one.finish(*items))
        monkeypatch.undo()
        two.owner = one.owner
        second = two.finish(*items)
        gate.open()
        assert {answer.verdict for answer in second} == {"applied"}
        assert {answer.verdict for answer in first.result()} == {"duplicate"}
    assert len(jobs.history(conn, leases[1].id)) == 1


def test_a_checkpoint_and_an_older_one_from_a_connection_given_up(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch
) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    older = KeepItem(id=lease.id, lease_no=lease.lease_no, checkpoint='"older"', version=1)
    newer = KeepItem(id=lease.id, lease_no=lease.lease_no, checkpoint='"newer"', version=2)
    with gated(dsn, monkeypatch, "_KEEP", module=keeping) as gate:
        # As after a timeout: the keeper says it over another connection, with what the job has said since.
        given_up = gate.run(lambda: one.call(keep, owner=one.owner, items=[older]))
        monkeypatch.undo()
        assert two.call(keep, owner=one.owner, items=[newer]) == {lease.key}
        gate.open()
        assert given_up.result() == {lease.key}
    one.end(lease, "release", checkpoint="")
    again = one.lease_one()
    assert again.checkpoint == '"newer"'
    # A lease has its own child, whose versions begin again.
    first = KeepItem(id=again.id, lease_no=again.lease_no, checkpoint='"first"', version=1)
    assert one.call(keep, owner=one.owner, items=[first]) == {again.key}
    one.end(again, "release", checkpoint="")
    assert one.lease_one().checkpoint == '"first"'


def test_heartbeat_and_finish(dsn: str, conn: Conn, one: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 3)
    completed, retried, held = one.lease(3)
    with gated(dsn, monkeypatch, "_HEARTBEAT") as gate:
        answers = gate.run(lambda: one.beat(completed, retried, held))
        one.finish(item(completed, "completed"), item(retried, "retry"))
        gate.open()
        verdicts = answers.result()
    # On the heartbeat's snapshot the rows are still ours, and nobody holds them: they look busy, and are lost the next time.
    assert verdicts[2] == "held"
    assert set(verdicts[:2]) <= {"busy", "lost"}
    assert one.beat(completed, retried, held) == ["lost", "lost", "held"]
    assert jobs.status(conn, completed.id) == "completed"
    assert jobs.status(conn, retried.id) == "pending"


def test_heartbeat_and_a_cancel_request(dsn: str, conn: Conn, one: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    with gated(dsn, monkeypatch, "_HEARTBEAT") as gate:
        answers = gate.run(lambda: one.beat(lease))
        assert jobs.cancel(conn, lease.id) == "requested"
        gate.open()
        assert answers.result() == ["cancel"]


def test_heartbeat_and_a_rescue(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    jobs.expire(conn, lease.id)
    with gated(dsn, monkeypatch, "_HEARTBEAT") as gate:
        answers = gate.run(lambda: one.beat(lease))
        assert two.rescue(one.owner) == ["pending"]
        again = two.lease_one()
        before = jobs.live(conn, lease.id)
        gate.open()
        assert answers.result()[0] != "held"
    assert jobs.live(conn, again.id) == before, "nothing of the new lease was prolonged"


def test_rescue_and_a_heartbeat(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 2)
    alive, dead = one.lease(2)
    jobs.expire(conn, alive.id, dead.id)
    with gated(dsn, monkeypatch, "_RESCUE") as gate:
        rescued = gate.run(lambda: two.rescue(one.owner))
        assert one.beat(alive) == ["held"]
        gate.open()
        assert rescued.result() == ["pending"]
    assert (jobs.status(conn, alive.id), jobs.status(conn, dead.id)) == ("running", "pending")
    assert one.end(alive, "completed") == ("applied", "completed")


@pytest.mark.parametrize("kind", ["completed", "retry"])
def test_rescue_and_finish(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch, kind: Any) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    jobs.expire(conn, lease.id)
    with gated(dsn, monkeypatch, "_RESCUE") as gate:
        rescued = gate.run(lambda: two.rescue(one.owner))
        assert one.end(lease, kind) == ("applied", kind)
        gate.open()
        assert rescued.result() == []
    assert (jobs.live(conn, lease.id) or {"lease_no": 1})["lease_no"] == 1


def test_rescue_and_a_cancel_request(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    jobs.expire(conn, lease.id)
    with gated(dsn, monkeypatch, "_RESCUE") as gate:
        rescued = gate.run(lambda: two.rescue(one.owner))
        assert jobs.cancel(conn, lease.id) == "requested"
        gate.open()
        assert rescued.result() == ["canceled"]
    assert jobs.status(conn, lease.id) == "canceled"


def test_two_rescues(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch) -> None:
    jobs.fill(conn, 2)
    leases = one.lease(2)
    jobs.expire(conn, *(lease.id for lease in leases))
    with gated(dsn, monkeypatch, "_RESCUE") as gate, Holder(dsn) as three:
        first = gate.run(lambda: two.rescue(one.owner))
        monkeypatch.undo()
        assert three.rescue(one.owner) == ["pending", "pending"]
        gate.open()
        assert first.result() == []
    assert [len(jobs.history(conn, lease.id)) for lease in leases] == [1, 1]


def test_two_leases(dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch) -> None:
    ids = jobs.fill(conn, 4)
    with gated(dsn, monkeypatch, "LEASE") as gate:
        first = gate.run(lambda: one.lease(4))
        monkeypatch.undo()
        taken = two.lease(2)
        gate.open()
        assert [lease.id for lease in taken] == ids[:2]
        assert [lease.id for lease in first.result()] == ids[2:]


def test_lease_and_a_cancel(dsn: str, conn: Conn, one: Holder, monkeypatch: MonkeyPatch) -> None:
    canceled, left = jobs.fill(conn, 2)
    with gated(dsn, monkeypatch, "LEASE") as gate:
        taken = gate.run(lambda: one.lease(2))
        assert jobs.cancel(conn, canceled) == "canceled"
        gate.open()
        assert [lease.id for lease in taken.result()] == [left]
    assert jobs.status(conn, canceled) == "canceled"


def test_lease_and_a_job_that_went_round_meanwhile(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch
) -> None:
    """The row is pending on the snapshot and pending at the lock, but it is another version: a retry that waits."""
    jobs.fill(conn, 1)
    with gated(dsn, monkeypatch, "LEASE") as gate:
        taken = gate.run(lambda: one.lease(1))
        monkeypatch.undo()
        two.end(two.lease_one(), "retry", delay=3600.0)
        gate.open()
        assert taken.result() == []


def test_lease_and_a_release_meanwhile(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch
) -> None:
    (job_id,) = jobs.fill(conn, 1)
    with gated(dsn, monkeypatch, "LEASE") as gate:
        taken = gate.run(lambda: one.lease(1))
        monkeypatch.undo()
        two.end(two.lease_one(), "release")
        gate.open()
        leases = taken.result()
    assert [(lease.id, lease.lease_no, lease.attempt) for lease in leases] in ([], [(job_id, 2, 1)])
    if leases:
        assert one.end(leases[0], "completed") == ("applied", "completed")


def test_cancel_waits_for_a_finish_that_is_being_written(dsn: str, conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 1)
    lease = one.lease_one()
    one.run(one.conn.execute, "BEGIN")
    assert one.end(lease, "completed") == ("applied", "completed")
    with psycopg.connect(dsn, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(jobs.cancel, other, lease.id)
        wait_for_lock_wait(conn)
        one.run(one.conn.execute, "COMMIT")
        assert answer.result() == "finished"


def test_a_lease_that_commits_after_its_reply_was_given_up_is_released(
    dsn: str, conn: Conn, one: Holder, two: Holder, monkeypatch: MonkeyPatch
) -> None:
    (job_id,) = jobs.fill(conn, 1)
    with gated(dsn, monkeypatch, "LEASE") as gate:
        orphan = gate.run(lambda: one.lease(1))
        two.owner = one.owner  # the same supervisor, reconnected
        assert two.release_unknown() == 0, "once is not enough"
        gate.open()
        (lost,) = orphan.result()
    assert jobs.status(conn, job_id) == "running"
    assert two.release_unknown(job_id) == 0, "known leases are left alone"
    assert two.release_unknown() == 1
    row = jobs.live(conn, job_id)
    assert row is not None
    assert (row["status"], row["attempt"], row["lease_no"]) == ("pending", 0, 2)
    assert one.end(lost, "completed") == ("stale", "completed")
