"""The protocol with one of its safeguards removed: the world must notice each time, or it would not notice a bug either.

Each scenario is one that goes well with the real statements and schema, which is tested here too.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tasuki_mp.store import work
from tests.model.ledger import LEASE_FOR
from tests.model.world import World

Scenario = Callable[[World], None]


def an_outcome_after_a_rescue(world: World) -> None:
    """A supervisor is frozen for longer than its lease; another one has taken over when it wakes up."""
    world.enqueue()
    (late,) = world.lease(0)
    world.advance(LEASE_FOR * 1.2)
    world.rescue(1)
    world.check()
    world.lease(1)
    world.finish(0, [(late, "completed")])
    world.check()


def an_outcome_of_an_older_lease(world: World) -> None:
    """The same supervisor has leased the job again meanwhile."""
    world.enqueue()
    (late,) = world.lease(0)
    world.advance(LEASE_FOR * 1.2)
    world.rescue(1)
    world.lease(0)
    world.finish(0, [(late, "completed")])
    world.check()


def an_outcome_of_another_s_lease(world: World) -> None:
    """Two supervisors know the same lease, as after a failover that lost a commit."""
    world.enqueue()
    (lease,) = world.lease(0)
    world.finish(1, [(lease, "completed")])
    world.check()


def a_retry_sent_twice(world: World) -> None:
    """The reply to a finish is lost, and the next attempt runs when it is sent again."""
    world.enqueue()
    (lease,) = world.lease(0)
    world.finish(0, [(lease, "retry")], is_reply_lost=True)
    world.lease(0)
    world.finish(0, [(lease, "retry")])
    world.check()


def a_hand_in_the_table(world: World) -> None:
    """Somebody sets a running job to pending, which leaves its owner in place; then its outcome arrives."""
    job_id = world.enqueue()
    (lease,) = world.lease(0)
    world.meddle(job_id)
    world.finish(0, [(lease, "completed")])
    world.check()


def a_cancel_request_and_a_retry(world: World) -> None:
    world.cancel(world.enqueue())
    job_id = world.enqueue()
    (lease,) = world.lease(0)
    world.cancel(job_id)
    world.finish(0, [(lease, "retry")])
    world.check()


def a_heartbeat_after_a_rescue(world: World) -> None:
    world.enqueue()
    world.lease(0)
    world.advance(LEASE_FOR * 1.2)
    world.rescue(1)
    world.lease(1)
    world.beat(0)
    world.check()


def a_last_attempt_that_is_lost(world: World) -> None:
    """The ancestor of this project left such a job running for ever."""
    world.enqueue(max_attempts=1)
    world.lease(0)
    world.advance(LEASE_FOR * 1.2)
    world.rescue(1)
    world.check()


SCENARIOS: list[Scenario] = [
    an_outcome_after_a_rescue,
    an_outcome_of_an_older_lease,
    an_outcome_of_another_s_lease,
    a_retry_sent_twice,
    a_hand_in_the_table,
    a_cancel_request_and_a_retry,
    a_heartbeat_after_a_rescue,
    a_last_attempt_that_is_lost,
]

STATEMENTS: dict[str, tuple[Scenario, str, str, str]] = {
    "finish without the fence": (
        an_outcome_after_a_rescue,
        "FINISH",
        "and j.lease_no = item.lease_no and j.owner = %(owner)s",
        "and %(owner)s::uuid is not null",
    ),
    "finish fenced by the owner only": (an_outcome_of_an_older_lease, "FINISH", "and j.lease_no = item.lease_no", ""),
    "finish fenced by the number only": (
        an_outcome_of_another_s_lease,
        "FINISH",
        "and j.owner = %(owner)s",
        "and %(owner)s::uuid is not null",
    ),
    "lease without a new number": (a_retry_sent_twice, "LEASE", "lease_no = j.lease_no + 1,", ""),
    "rescue without a new number": (an_outcome_after_a_rescue, "_RESCUE", "lease_no = j.lease_no + 1,", ""),
    "finish that does not look for a cancel request": (
        a_cancel_request_and_a_retry,
        "FINISH",
        "job.cancel_requested_at is not null",
        "false",
    ),
    "heartbeat without the fence": (
        a_heartbeat_after_a_rescue,
        "_HEARTBEAT",
        "and j.lease_no = beat.lease_no and j.owner = %(owner)s",
        "",
    ),
    "rescue that leaves the last attempt": (
        a_last_attempt_that_is_lost,
        "_RESCUE",
        "j.status = 'running'",
        "j.status = 'running' and j.attempt < j.max_attempts",
    ),
    "verdict that takes any row of the history for its own": (
        an_outcome_after_a_rescue,
        "_VERDICT",
        "and a.owner = %(owner)s",
        "",
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_goes_well_with_all_safeguards(world: World, scenario: Scenario) -> None:
    scenario(world)


@pytest.mark.parametrize("mutant", STATEMENTS)
def test_a_statement_without_its_safeguard_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    scenario, name, safeguard, instead = STATEMENTS[mutant]
    text: bytes = getattr(work, name)
    assert safeguard.encode() in text
    monkeypatch.setattr(work, name, text.replace(safeguard.encode(), instead.encode()))
    with pytest.raises((AssertionError, psycopg.errors.CheckViolation)):  # the world notices, or the schema itself
        scenario(world)


def test_a_schema_without_the_check_that_ties_the_owner_to_running_is_noticed(world: World) -> None:
    world.conn.execute("ALTER TABLE tasuki.job DROP CONSTRAINT job_owner_running")
    with pytest.raises(AssertionError):
        a_hand_in_the_table(world)


def test_what_the_triggers_write_down_is_enough_to_notice(world: World) -> None:
    """The rules over the audit stand alone: they find a job that ended while it was pending, whatever the ledger says."""
    job_id = world.enqueue()
    (lease,) = world.lease(0)
    world.conn.execute("ALTER TABLE tasuki.job DROP CONSTRAINT job_owner_running")
    world.meddle(job_id)
    world.finish(0, [(lease, "completed")])
    with pytest.raises(AssertionError, match="a pending job ended otherwise"):
        world.check()


@pytest.mark.parametrize("change", ["DELETE FROM tasuki.job", "UPDATE tasuki.job SET lease_no = lease_no - 1"])
def test_a_change_by_hand_is_noticed(world: World, change: str) -> None:
    world.enqueue()
    world.lease(0)
    world.check()
    world.conn.execute(change.encode())
    with pytest.raises(AssertionError, match=r"arrive in the other|number fell"):
        world.check()


def test_the_archive_does_not_change(world: World) -> None:
    world.enqueue()
    (lease,) = world.lease(0)
    world.finish(0, [(lease, "completed")])
    with pytest.raises(psycopg.errors.RaiseException):
        world.conn.execute("UPDATE tasuki.job_archive SET status = 'completed'")
