"""The supervisor's pure parts: averages, shares, marks, tokens, quarantine, and what it tells of itself."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec
import pytest

from tasuki_mp.job import Lease
from tasuki_mp.store.upkeep import OtherSupervisor
from tasuki_mp.supervisor import identity
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.child import Death
from tasuki_mp.supervisor.estimate import Estimates, room_for_waiting
from tasuki_mp.supervisor.rescue import has_served_quarantine
from tasuki_mp.supervisor.stride import Stride
from tasuki_mp.supervisor.tokens import Tokens
from tasuki_mp.supervisor.usage import Place, Used, usage_json
from tasuki_mp.supervisor.watermark import LOOK_BACK, Position, Watermarks

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def lease(
    id: int, *, queue: str = "a", priority: int = 2, at: float = 0.0, lease_no: int = 1, sent_at: float = 0
) -> Lease:
    return Lease(
        id=id,
        lease_no=lease_no,
        queue=queue,
        handler="h",
        priority=priority,
        attempt=1,
        max_attempts=5,
        crashes=0,
        payload="{}",
        scheduled_at=T0 + timedelta(seconds=at),
        waited=0.0,
        sent_at=sent_at,
    )


# ── estimates ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_waits_while_runtimes_are_unknown_or_long() -> None:
    assert room_for_waiting(None, slots=8, seconds=0.25, most=1024) == 0
    assert room_for_waiting(10.0, slots=8, seconds=0.25, most=1024) == 0


def test_short_jobs_may_wait_for_a_quarter_of_a_second_up_to_the_bound() -> None:
    assert room_for_waiting(0.010, slots=2, seconds=0.25, most=1024) == 50
    assert room_for_waiting(0.00001, slots=2, seconds=0.25, most=1024) == 1024


def test_averages_follow_what_was_measured_per_handler() -> None:
    estimates = Estimates()
    assert estimates.of("h") is None
    assert estimates.overall is None
    for _ in range(100):
        estimates.add("h", 1.0)
    estimates.add("other", 0.5)
    assert estimates.of("h") == pytest.approx(1.0)
    assert estimates.of("other") == 0.5
    assert 0.5 < (estimates.overall or 0) < 1.0


# ── stride ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_are_honoured_when_jobs_come_one_by_one() -> None:
    stride = Stride({"a": 1, "b": 3})
    taken = {"a": 0, "b": 0}
    for _ in range(400):
        first = stride.order(["a", "b"])[0]
        taken[first] += 1
        stride.took({first: 1})
    assert taken == {"a": 100, "b": 300}


def test_a_batch_is_shared_by_weight_and_everybody_gets_something() -> None:
    assert Stride({"a": 1, "b": 3}).quotas(["a", "b"], 256) == {"a": 64, "b": 192}
    assert min(Stride({"a": 1, "b": 1000}).quotas(["a", "b"], 8).values()) >= 1


def test_a_queue_that_was_empty_for_long_does_not_take_over_when_it_fills() -> None:
    stride = Stride({"a": 1, "b": 1})
    for _ in range(1000):
        stride.took({"a": 1})
    taken = {"a": 0, "b": 0}
    for _ in range(100):
        first = stride.order(["a", "b"])[0]
        taken[first] += 1
        stride.took({first: 1})
    assert taken["a"] >= 45


# ── watermarks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def back(seconds: float) -> Position:
    """Where a scan begins whose mark is then."""
    return Position(T0 + timedelta(seconds=seconds) - LOOK_BACK, 0)


def test_a_short_scan_begins_a_little_before_what_was_taken_last() -> None:
    marks = Watermarks()
    assert marks.start_of("a", 2) is None
    marks.took([lease(1, at=5), lease(2, at=9), lease(3, queue="b", at=1)], is_full=False)
    assert marks.start_of("a", 2) == back(9)
    assert marks.start_of("b", 2) == back(1)


def test_a_scan_goes_on_where_the_last_one_ended_while_there_is_more_and_looks_back_every_second() -> None:
    marks = Watermarks()
    assert not marks.may_go_on(0.0)
    marks.scanned(at=0.0, went_on=False, has_more=True)
    marks.took([lease(7, at=5), lease(8, at=5), lease(3, queue="b", at=1)], is_full=False)
    assert marks.may_go_on(0.9)
    assert marks.start_of("a", 2, goes_on=True) == Position(T0 + timedelta(seconds=5), 8)
    assert marks.start_of("b", 2, goes_on=True) == Position(T0 + timedelta(seconds=1), 3)
    assert marks.start_of("a", 1, goes_on=True) is None
    marks.scanned(at=0.9, went_on=True, has_more=True)
    assert not marks.may_go_on(1.0), "going on is no looking back"
    marks.scanned(at=1.0, went_on=False, has_more=True)
    assert marks.may_go_on(1.9)
    marks.lower("a", to=T0 + timedelta(seconds=5))
    assert not marks.may_go_on(1.9), "a job that was due at that very instant may be anywhere"
    marks.scanned(at=2.0, went_on=False, has_more=False)
    assert not marks.may_go_on(2.0)


def test_only_a_full_scan_sets_a_mark_backwards() -> None:
    marks = Watermarks()
    marks.took([lease(1, at=100)], is_full=False)
    marks.took([lease(2, at=50)], is_full=False)
    assert marks.start_of("a", 2) == back(100)
    marks.took([lease(3, at=50)], is_full=True)
    assert marks.start_of("a", 2) == back(50)


def test_full_scans_come_every_half_minute_and_no_sooner_than_a_hundred_times_their_cost() -> None:
    marks = Watermarks()
    assert marks.must_full_scan(0.0)
    marks.full_scan_done(at=0.0, took=0.001)
    assert not marks.may_full_scan(0.9)
    assert marks.may_full_scan(1.0)
    assert not marks.must_full_scan(29.0)
    assert marks.must_full_scan(30.0)
    marks.full_scan_done(at=30.0, took=0.1)
    assert not marks.may_full_scan(39.9)
    assert marks.may_full_scan(40.0)


def test_where_a_look_at_everything_took_long_and_found_nothing_the_next_scan_begins_there() -> None:
    marks = Watermarks()
    marks.full_scan_done(at=0.0, took=0.001)
    marks.found_none(["a"], at=T0)
    assert marks.start_of("a", 2) is None
    marks.full_scan_done(at=0.0, took=0.5)
    marks.found_none(["a"], at=T0)
    assert [marks.start_of("a", priority) for priority in (0, 3)] == [back(0)] * 2
    assert marks.start_of("b", 2) is None


def test_the_first_look_at_everything_says_nothing_about_the_cost_of_the_next() -> None:
    marks = Watermarks()
    marks.full_scan_done(at=0.0, took=0.1)
    assert marks.may_full_scan(1.0)
    marks.full_scan_done(at=1.0, took=0.1)
    assert not marks.may_full_scan(10.9)


def test_the_first_look_counts_where_it_takes_longer_than_cold_caches_do() -> None:
    marks = Watermarks()
    marks.full_scan_done(at=0.0, took=0.3)
    assert not marks.may_full_scan(19.9)


def test_jobs_that_became_due_again_lower_the_mark_of_their_queue_and_never_raise_it() -> None:
    marks = Watermarks()
    marks.took([lease(1, at=100), lease(2, queue="b", at=100)], is_full=False)
    marks.lower("a", to=T0 + timedelta(seconds=60))
    marks.lower("a", to=T0 + timedelta(seconds=80))
    assert marks.start_of("a", 2) == back(60)
    assert marks.start_of("a", 1) is None
    assert marks.start_of("b", 2) == back(100)


def test_what_becomes_due_again_during_a_scan_is_looked_for_by_the_next() -> None:
    marks = Watermarks()
    marks.took([lease(1, at=50)], is_full=False)
    marks.scan_begins()
    marks.lower("a", to=T0 + timedelta(seconds=80))
    marks.lower("b", to=T0 + timedelta(seconds=60))
    marks.scanned(at=0.0, went_on=False, has_more=True)
    marks.took([lease(2, at=100), lease(3, queue="b", at=100), lease(4, queue="c", at=100)], is_full=False)
    assert not marks.may_go_on(0.0)
    assert [marks.start_of(queue, 2) for queue in "abc"] == [back(80), back(60), back(100)]
    marks.scan_begins()
    marks.scanned(at=0.1, went_on=False, has_more=True)
    marks.took([lease(5, at=110)], is_full=False)
    assert marks.may_go_on(0.1)
    assert marks.start_of("a", 2) == back(110)


def test_what_becomes_due_again_during_a_look_at_everything_is_looked_for_too() -> None:
    marks = Watermarks()
    marks.full_scan_done(at=0.0, took=0.5)
    marks.lower("a", to=T0 - timedelta(seconds=10))
    marks.found_none(["a", "b"], at=T0)
    assert [marks.start_of(queue, 2) for queue in "ab"] == [back(-10), back(0)]


# ── tokens, quarantine ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flood_of_notifications_is_answered_at_the_refill_rate() -> None:
    tokens = Tokens(burst=20, per_second=20)
    assert sum(tokens.take(0.0) for _ in range(100)) == 20
    assert sum(tokens.take(0.5) for _ in range(100)) == 10


def test_a_reaction_that_finds_work_costs_nothing() -> None:
    tokens = Tokens(burst=1, per_second=0)
    for _ in range(10):
        assert tokens.take(0.0)
        tokens.give_back()


@pytest.mark.parametrize(
    ("unbroken_for", "server_up_for", "may"), [(61, 61, True), (59, 1000, False), (1000, 59, False), (0, 0, False)]
)
def test_nobody_rescues_before_a_whole_lease_of_heartbeats_and_uptime(
    unbroken_for: float, server_up_for: float, *, may: bool
) -> None:
    assert has_served_quarantine(unbroken_for=unbroken_for, server_up_for=server_up_for, lease_for=60) is may


# ── the book ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_is_fresh_for_half_its_time_from_before_the_request() -> None:
    book = LeaseBook(lease_for=60)
    book.add([lease(1, sent_at=100.0)])
    assert book.fresh((1, 1), at=129.9) is not None
    assert book.fresh((1, 1), at=130.0) is None
    assert book.is_trusted((1, 1), at=158.9, margin=1)
    assert not book.is_trusted((1, 1), at=159.0, margin=1)
    book.renewed([(1, 1)], sent_at=140.0, noted=[])
    assert book.fresh((1, 1), at=169.9) is not None


def test_only_exactly_this_lease_is_in_the_book() -> None:
    book = LeaseBook(lease_for=60)
    book.add([lease(1, lease_no=4)])
    assert (1, 4) in book
    assert (1, 3) not in book
    book.remove([(1, 3)])
    assert (1, 4) in book
    book.remove([(1, 4)])
    assert len(book) == 0


def test_a_job_that_is_given_out_again_while_held_is_told() -> None:
    book = LeaseBook(lease_for=60)
    assert book.add([lease(1, lease_no=1)]) == []
    assert book.add([lease(1, lease_no=2)]) == [lease(1, lease_no=1)]


def test_a_lease_that_comes_again_under_its_number_is_trusted_anew_and_its_row_knows_nothing_of_its_run() -> None:
    book = LeaseBook(lease_for=60)
    book.add([lease(1, sent_at=100.0)])
    book.renewed([(1, 1)], sent_at=100.0, noted=[(1, 1)])
    assert book.confirm([lease(1, sent_at=150.0), lease(1, lease_no=2), lease(2)]) == [lease(1, sent_at=150.0)]
    held = book.get((1, 1))
    assert held is not None
    assert (held.trusted_from, held.is_noted) == (150.0, False)
    assert (2, 1) not in book


def test_beats_come_for_every_lease_in_the_order_of_ids() -> None:
    book = LeaseBook(lease_for=60)
    book.add([lease(3), lease(1), lease(2)])
    assert [beat.id for beat in book.beats(at=0.0)] == [1, 2, 3]
    assert book.young_beats(at=0.0) == []


# ── identity, usage ───────────────────────────────────────────────────────────────────────────────────────────────────


def other(**changes: object) -> OtherSupervisor:
    me = identity.own_row(procs=1, queues=[], handlers=[], lease=60)
    same = OtherSupervisor(uuid4(), me.host, me.pid, me.pid_started, me.boot_id, me.pid_ns, is_stale=True)
    return msgspec.structs.replace(same, **changes)


def test_only_a_process_of_this_boot_and_namespace_can_be_proved_gone() -> None:
    assert not identity.is_provably_gone(other())
    assert identity.is_provably_gone(other(pid_started=1))
    assert identity.is_provably_gone(other(pid=2**22 - 1))
    assert not identity.is_provably_gone(other(pid_started=1, boot_id="another"))
    assert not identity.is_provably_gone(other(pid_started=1, pid_ns="another"))
    assert not identity.is_provably_gone(other(pid_started=1, boot_id=""))


def test_every_start_is_another_owner() -> None:
    rows = [identity.own_row(procs=1, queues=[], handlers=[], lease=60) for _ in range(2)]
    assert rows[0].owner != rows[1].owner
    assert rows[0].pid == os.getpid()


def test_usage_is_json_and_leaves_out_what_is_unknown() -> None:
    place, used = Place(pid=1, slot=0, version='1"'), Used(user=1.0, system=0.25, peak=4096)
    full = json.loads(usage_json(place=place, seconds=1.5, used=used, waited=0.5, signal="SIGKILL"))
    assert full.pop("host")
    assert full == {
        "waited_seconds": 0.5,
        "pid": 1,
        "slot": 0,
        "version": '1"',
        "seconds": 1.5,
        "cpu_seconds": 1.25,
        "user_seconds": 1.0,
        "system_seconds": 0.25,
        "memory_peak": 4096,
        "signal": "SIGKILL",
    }
    assert set(json.loads(usage_json(waited=0))) == {"host", "waited_seconds"}


@pytest.mark.parametrize(
    ("death", "words"),
    [
        (Death(signal="SIGSEGV"), "killed by SIGSEGV"),
        (Death(exit_code=3), "ended with exit code 3"),
        (Death(exit_code=0), "ended with exit code 0"),
        (Death(exit_code=70), "ended with exit code 70 (EX_SOFTWARE)"),
        (Death(exit_code=137), "ended with exit code 137 (as shells say SIGKILL)"),
        (Death(), "ended with an unknown status"),
    ],
)
def test_how_a_child_died_is_said_by_name(death: Death, words: str) -> None:
    assert str(death) == words
