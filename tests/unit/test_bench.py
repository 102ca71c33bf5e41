"""What the benchmark calculates from what it has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import report, slots, statements
from scripts.bench.__main__ import BENCHMARKS
from scripts.bench.figures import Pair, Row
from scripts.bench.mixed import schedule
from scripts.bench.slots import Run
from scripts.bench.steady import rate, window

LOG = """\
2026-01-01 00:00:00.000 UTC [7] tasuki-mp lease LOG:  duration: 0.500 ms  bind _pg3_0: -- Take due jobs
2026-01-01 00:00:00.000 UTC [8] tasuki-mp finish LOG:  duration: 9.000 ms  execute <unnamed>: -- Write down
2026-01-01 00:00:00.001 UTC [7] tasuki-mp lease LOG:  duration: 2.000 ms  execute _pg3_0: -- Take due jobs
\twith entry as materialized (
2026-01-01 00:00:00.001 UTC [7] tasuki-mp lease ERROR:  duration is no statement
2026-01-01 00:00:00.002 UTC [9]  LOG:  duration: 0.100 ms  statement: SELECT 1
2026-01-01 00:00:00.003 UTC [7] tasuki-mp lease LOG:  duration: 1.000 ms  execute _pg3_0: -- Take due jobs
"""


def test_every_row_has_a_target() -> None:
    assert {"mixed", "backlog", "unknown", "old-transaction", "idle", "start"} <= BENCHMARKS.keys()
    assert all(row.target and row.reference and row.unit for row in BENCHMARKS.values())


def test_the_ideal_schedule_gives_each_job_to_the_slot_that_is_free_first() -> None:
    assert schedule([5, 1, 1, 1], 2) == 5
    assert schedule([1, 1, 1, 5], 2) == 6
    assert schedule([2, 3], 1) == 5


def test_a_slot_that_is_free_while_a_short_job_waits_is_found() -> None:
    busy = [Run(1, 0, 9, is_short=False), Run(2, 0, 1, is_short=True), Run(2, 1, 2, is_short=True)]
    assert slots.longest_wait(busy) == 0
    behind = Run(1, 9, 10, is_short=True)
    assert slots.longest_wait([*busy, behind]) == 7, "slot 2 stood free from 2 to 9"
    late = Run(2, 20, 21, is_short=False)
    assert slots.longest_wait([*busy, late]) == 0, "only long ones waited"


def test_statements_are_read_from_the_log_with_their_planning(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("before\n")
    log = statements.Log(path)
    with path.open("a") as file:
        file.write(LOG)
    found = log.statements()
    assert [(each.application, each.ms) for each in found] == [
        ("tasuki-mp finish", 9.0),
        ("tasuki-mp lease", 2.5),
        ("", 0.1),
        ("tasuki-mp lease", 1.0),
    ]
    assert statements.percentile(found, "-- Take", 0.99) == 2.5
    assert statements.percentile(found, "-- Take", 0.4) == 1.0
    with pytest.raises(RuntimeError):
        statements.percentile(found, "-- Never", 0.5)


def test_the_steady_rate_leaves_out_the_beginning_and_the_end() -> None:
    over = window(30)
    assert (over.skip, over.measured, over.jobs) == (10, 17, 27)
    assert rate([0.0, 5.0, 6.0, 7.0], 1, 3) == 1.0


def row(name: str, *ratios: float, steal: float = 0.0) -> Row:
    pairs = [Pair(ratio * 100, 100.0, ratio, {"due jobs": 500_000.0}) for ratio in ratios]
    return Row(name, "what it does", "jobs/s", "the limit", "0.90", pairs, steal)


def result(*rows: Row, command: str = "python -m scripts.bench all --json") -> dict[str, Any]:
    """As if printed and read again."""
    made = {"machine": "2 cores", "revision": "0123abc", "command": command, "rows": [each.as_json() for each in rows]}
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_results_are_merged_in_the_order_of_the_benchmark() -> None:
    results = [result(row("idle", 2), row("backlog", 0.9, 1)), result(row("backlog", 0.8, steal=0.02), row("noop", 3))]
    found = report.merged(results)
    assert list(found) == ["noop", "backlog", "idle"]
    assert found["backlog"] == row("backlog", 0.9, 1, 0.8, steal=0.02)


def test_the_page_gets_table_and_pictures() -> None:
    page = "above\n<!-- begin of the table -->\nold\n<!-- end of the table -->\nbelow\n"
    made = report.report([result(row("backlog", 0.9, 1, 0.8))], page)
    assert {file.name for file in made} == {"benchmarks.md", "shares.svg", "backlog.svg"}, "noop was not measured"
    text = made[report.PAGE]
    assert text.startswith("above\n<!-- begin of the table -->\n2 cores\n")
    assert text.endswith("\n<!-- end of the table -->\nbelow\n")
    assert "old" not in text
    line = (
        "| `backlog` | what it does | 90 (80 to 100) jobs/s | the limit: 100 (100 to 100) jobs/s | 0.90 (0.80 to 1.00) "
    )
    assert line + "| 0.90 | 3, 0% | due jobs: 500,000 |\n" in text
    assert "python -m scripts.bench all --json  # at 0123abc\n" in text


def test_a_row_that_fails_does_not_lose_those_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, **_: object) -> Row:
        if name == "idle":
            raise RuntimeError("the machine is on fire")
        return row(name, 1)

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench", "backlog", "idle", "--json"])
    with pytest.raises(RuntimeError):
        bench.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == "python -m scripts.bench backlog idle --json"
    assert [Row.from_json(each) for each in printed["rows"]] == [row("backlog", 1)]
