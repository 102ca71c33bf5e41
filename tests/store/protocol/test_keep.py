"""What running jobs say of themselves: written under the fence only, in the order it was said, and gone when it should be."""

from __future__ import annotations

from typing import Any

import psycopg

from tasuki_mp.job import Lease
from tasuki_mp.store.keep import KeepItem, keep
from tests.support import jobs
from tests.support.holder import Holder

Conn = psycopg.Connection[Any]


def say(lease: Lease, **more: Any) -> KeepItem:
    return KeepItem(id=lease.id, lease_no=lease.lease_no, **more)


def kept(conn: Conn, job_id: int) -> Any:
    row = conn.execute("SELECT state, lease_no FROM tasuki.checkpoint WHERE job_id = %s", (job_id,)).fetchone()
    return None if row is None else row


def test_only_the_holder_of_the_lease_can_write(conn: Conn, one: Holder, two: Holder) -> None:
    job_id = jobs.add(conn)
    lease = one.lease_one()
    everything = say(lease, has_progress=True, fraction=0.5, note="half", checkpoint="[1]")
    older = KeepItem(id=job_id, lease_no=lease.lease_no - 1, has_progress=True, fraction=0.1, checkpoint="[0]")
    assert two.call(keep, owner=two.owner, items=[everything]) == set()
    assert one.call(keep, owner=one.owner, items=[older]) == set()
    assert kept(conn, job_id) is None
    assert one.call(keep, owner=one.owner, items=[everything]) == {lease.key}
    row = jobs.live(conn, job_id)
    assert row is not None and (row["progress"], row["progress_note"]) == (0.5, "half")
    assert kept(conn, job_id) == ([1], lease.lease_no)
    one.end(lease, "retry")
    row = jobs.live(conn, job_id)
    assert row is not None and (row["progress"], row["progress_note"]) == (None, None)
    assert one.call(keep, owner=one.owner, items=[everything]) == set(), "a word that comes too late"


def test_each_part_is_written_only_where_it_is_new(conn: Conn, one: Holder) -> None:
    first, second = jobs.add(conn), jobs.add(conn)
    first_lease, second_lease = sorted(one.lease(2), key=lambda lease: lease.id)
    one.call(
        keep,
        owner=one.owner,
        items=[say(first_lease, has_progress=True, note="n"), say(second_lease, checkpoint='"a"')],
    )
    one.call(
        keep,
        owner=one.owner,
        items=[say(second_lease, has_progress=True, fraction=1.0), say(first_lease, checkpoint="null")],
    )
    rows = [jobs.live(conn, job_id) for job_id in (first, second)]
    assert [row and (row["progress"], row["progress_note"]) for row in rows] == [(None, "n"), (1.0, None)]
    assert [kept(conn, job_id) for job_id in (first, second)] == [(None, 1), ("a", 1)]


def test_a_row_that_is_locked_keeps_nobody_else_waiting(conn: Conn, one: Holder) -> None:
    ids = [jobs.add(conn), jobs.add(conn)]
    first_lease, second_lease = sorted(one.lease(2), key=lambda lease: lease.id)
    with conn.transaction():
        conn.execute("SELECT FROM tasuki.job WHERE id = %s FOR UPDATE", (first_lease.id,))
        written = one.call(
            keep, owner=one.owner, items=[say(first_lease, checkpoint="1"), say(second_lease, checkpoint="2")]
        )
    assert written == {second_lease.key}
    assert [kept(conn, job_id) for job_id in ids] == [None, (2, 1)]


def test_the_last_word_comes_with_the_outcome_and_the_next_lease(conn: Conn, one: Holder) -> None:
    job_id = jobs.add(conn, max_attempts=9)
    lease = one.lease_one()
    assert lease.checkpoint is None
    for kind in ("retry", "snooze", "release"):
        one.call(keep, owner=one.owner, items=[say(lease, checkpoint='"older"')])
        assert one.end(lease, kind, checkpoint=f'"{kind}"') == ("applied", kind)
        assert one.end(lease, kind, checkpoint='"twice"') == ("duplicate", kind)
        lease = one.lease_one()
        assert lease.checkpoint == f'"{kind}"'
    assert one.end(lease, "retry", checkpoint="")[0] == "applied"
    lease = one.lease_one()
    assert lease.checkpoint == '"release"', "empty: what is on record stays"
    assert one.end(lease, "completed", result="1", checkpoint="")[0] == "applied"
    assert kept(conn, job_id) is None


def test_a_job_that_did_not_complete_keeps_it(conn: Conn, one: Holder) -> None:
    ids = [jobs.add(conn) for _ in range(3)]
    failed, canceled, asked = sorted(one.lease(3), key=lambda lease: lease.id)
    jobs.cancel(conn, asked.id)
    assert one.end(failed, "failed", checkpoint="1") == ("applied", "failed")
    assert one.end(canceled, "canceled", checkpoint="2") == ("applied", "canceled")
    assert one.end(asked, "retry", checkpoint="3") == ("applied", "canceled")
    assert [kept(conn, job_id) for job_id in ids] == [(1, 1), (2, 1), (3, 1)]
