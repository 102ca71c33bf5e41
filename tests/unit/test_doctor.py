"""What is worth saying about what the doctor has seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasuki_mp.store import judgements
from tasuki_mp.store.judgements import Finding, Holder, Server, TableState
from tasuki_mp.store.look import QueueDepth, SupervisorInfo
from tasuki_mp.store.retention import Partition

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HEALTHY: dict[str, Any] = {
    "version": "17.2",
    "version_number": 170_002,
    "now": NOW,
    "is_standby": False,
    "has_fsync": True,
    "has_full_page_writes": True,
    "has_autovacuum": True,
    "synchronous_commit": "on",
    "notification_usage": 0.0,
    "connections": 20,
    "max_connections": 100,
    "sees_everything": True,
    "unlogged": [],
}


def brief(findings: Any) -> list[tuple[str, str]]:
    found: list[Finding] = list(findings)
    assert all(finding.what and finding.advice for finding in found)
    return [(finding.topic, finding.severity) for finding in found]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"version": "14.9", "version_number": 140_009}, [("version", "problem")]),
        ({"version": "15.0", "version_number": 150_000}, []),
        ({"version": "19beta1", "version_number": 190_000}, [("version", "note")]),
        ({"is_standby": True}, [("standby", "problem")]),
        ({"has_fsync": False}, [("durability", "problem")]),
        ({"has_full_page_writes": False}, [("durability", "problem")]),
        ({"synchronous_commit": "off"}, [("durability", "warning")]),
        ({"synchronous_commit": "remote_apply"}, []),
        ({"unlogged": ["job", "checkpoint"]}, [("durability", "problem"), ("durability", "problem")]),
        ({"has_autovacuum": False}, [("vacuum", "problem")]),
        ({"notification_usage": 0.2}, [("notifications", "warning")]),
        ({"notification_usage": 0.6}, [("notifications", "problem")]),
        ({"connections": 86}, [("connections", "warning")]),
        ({"sees_everything": False}, [("rights", "note")]),
    ],
)
def test_the_server(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert brief(judgements.judge_server(Server(**{**HEALTHY, **changes}))) == expected


@pytest.mark.parametrize(
    ("gap", "within", "expected"),
    [(1.5, 0.1, []), (-5, 0.1, ["note"]), (5, 4.0, []), (100, 0.1, ["warning"]), (-100, 0.1, ["warning"])],
)
def test_the_clocks(gap: float, within: float, expected: list[str]) -> None:
    found = list(judgements.judge_clock(NOW, NOW + timedelta(seconds=gap), within=within))
    assert [finding.severity for finding in found] == expected
    if found:
        assert ("behind" if gap > 0 else "ahead of") in found[0].what


@pytest.mark.parametrize(
    ("kind", "detail", "seconds", "xids", "expected"),
    [
        ("transaction", "active", 200, 10, []),
        ("transaction", "idle in transaction", 400, 10, ["warning"]),
        ("transaction", "active", 4000, None, ["problem"]),
        ("prepared", "by ann", 100, 10, []),
        ("prepared", "by ann", 400, 10, ["problem"]),
        ("slot", "active", None, 1000, []),
        ("slot", "active", None, 2_000_000, ["warning"]),
        ("slot", "not in use", None, None, ["warning"]),
        ("slot", "not in use", None, 2_000_000, ["problem"]),
        ("standby", "streaming", None, 1000, []),
        ("standby", "streaming", None, 2_000_000, ["warning"]),
    ],
)
def test_what_holds_back_dead_rows(
    kind: Any, detail: str, seconds: float | None, xids: int | None, expected: list[str]
) -> None:
    holder = Holder(kind=kind, name="pid 4711 (psql)", detail=detail, seconds=seconds, xids=xids)
    found = list(judgements.judge_horizon([holder]))
    assert [finding.severity for finding in found] == expected
    if found and kind == "transaction":
        assert "pg_terminate_backend(4711)" in found[0].advice


def test_dead_rows() -> None:
    def table(live: int, dead: int) -> TableState:
        return TableState(name="job", live=live, dead=dead, bytes=0, vacuumed_ago=None)

    assert brief(judgements.judge_tables([table(10, 40_000), table(900_000, 800_000)])) == []
    assert brief(judgements.judge_tables([table(100, 60_000)])) == [("bloat", "warning")]
    assert brief(judgements.judge_tables([table(100, 6_000_000)])) == [("bloat", "problem")]


def supervisor(**changes: Any) -> SupervisorInfo:
    values: dict[str, Any] = {
        "host": "h",
        "pid": 1,
        "version": "0",
        "procs": 1,
        "queues": ["a"],
        "handlers": [],
        "started_at": NOW,
        "seen_ago": 1.0,
        "is_stale": False,
        "running": 0,
        **changes,
    }
    return SupervisorInfo(**values)


def depth(queue: str, due: int, **changes: Any) -> QueueDepth:
    return QueueDepth(queue=queue, due=due, scheduled=0, held=0, running=0, oldest_due=0, **changes)


def test_who_works() -> None:
    judge = judgements.judge_supervisors
    assert brief(judge([], [], {})) == [("supervisors", "note")]
    assert brief(judge([], [depth("a", 1)], {})) == [("supervisors", "problem")]
    assert brief(judge([supervisor()], [depth("a", 5)], {})) == []
    assert brief(judge([supervisor()], [depth("b", 5), depth("c", 0)], {"x": 2})) == [
        ("queues", "warning"),
        ("handlers", "warning"),
    ]
    assert brief(judge([supervisor()], [depth("b", 5, paused_at=NOW)], {})) == [("queues", "note")]
    silent = [supervisor(), supervisor(is_stale=True), supervisor(is_stale=True, running=3)]
    assert brief(judge(silent, [], {})) == [("supervisors", "note"), ("supervisors", "warning")]


def partition(parent: str, days: int, **changes: Any) -> Partition:
    values: dict[str, Any] = {"is_attached": True, "is_detaching": False, "is_marked": False, **changes}
    day = (NOW + timedelta(days=days)).date()
    return Partition(parent, f"{parent}_x", day, **values, rows=0, blocks=0, bytes=0, now=NOW)


def test_places_for_what_finishes() -> None:
    parents = ("job_archive_completed", "job_archive_failed", "attempt")
    week = [partition(parent, days) for parent in parents for days in range(-1, 8)]
    judge = judgements.judge_partitions
    assert brief(judge(week, NOW)) == []
    assert brief(judge(week, NOW + timedelta(days=7))) == [("partitions", "warning")]
    assert brief(judge(week, NOW + timedelta(days=8))) == [("partitions", "problem")]
    assert brief(judge([*week[1:], partition("attempt", -3, is_detaching=True)], NOW)) == [("partitions", "note")]
    without = [each for each in week if each.parent != "attempt"]
    assert brief(judge([*without, partition("attempt", 0, is_attached=False)], NOW)) == [("partitions", "problem")]


def test_stuck_jobs_and_retention() -> None:
    assert brief(judgements.judge_stuck(0, None, None)) == []
    assert brief(judgements.judge_stuck(3, 7, 100.0)) == [("stuck", "problem")]
    hour = 3600.0
    judge = judgements.judge_upkeep
    assert brief(judge(None, None, None)) == []
    assert brief(judge(None, None, hour)) == [], "they have only just begun"
    assert brief(judge(hour, True, 9 * hour)) == []
    for begun_ago, has_ended in ((None, None), (4 * hour, True), (hour, False)):
        assert brief(judge(begun_ago, has_ended, 9 * hour)) == [("retention", "warning")]


def test_one_is_one() -> None:
    assert [f.what for f in judgements.judge_held(1, 7)] == [
        "1 job is held for a key of which fewer run than may; one of them is 7"
    ]
    assert [f.what for f in judgements.judge_batches(2, 7)] == [
        "2 batches are still being filled after a day, and can't end; one of them is 7"
    ]
    assert [f.what for f in judgements.judge_supervisors([], [], {})] == ["no supervisor is alive, and 0 jobs are due"]


def test_a_name_of_several_applications_names_them() -> None:
    (finding,) = judgements.judge_names(2, "scale", ["bank:app on there", "shop:app on here"])
    assert (finding.topic, finding.severity) == ("names", "warning")
    assert finding.what == (
        "2 names are used for a handler by several applications: bank:app on there, shop:app on here; one of them is scale"
    )


def test_a_schedule_that_nobody_minds_can_be_paused_or_removed() -> None:
    (finding,) = judgements.judge_schedule("nightly")
    assert "schedule pause nightly" in finding.advice
    assert "schedule remove nightly" in finding.advice
