"""A short chaos run: the script of the long one, with fewer supervisors and jobs."""

from __future__ import annotations

from pathlib import Path

from scripts.chaos.run import Plan, run


def test_every_promise_holds_under_random_faults(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan(minutes=0.2, jobs=500, supervisors=2, pause=0.5, seed=20_240_817)
    report = run(plan, tmp_path, said.append)
    broken = {verdict.name: verdict.rows[:5] for verdict in report.verdicts if verdict.rows}
    assert report.is_good, (broken, report.host_failures, report.totals, report.faults, said)
    # It was a chaos run indeed, and the evidence is there.
    assert sum(report.faults.values()) >= 10
    assert report.totals["executions"] >= 500
    assert len(report.verdicts) >= 20
