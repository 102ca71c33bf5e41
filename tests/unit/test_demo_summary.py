"""What the demo makes of its finished jobs, which files it takes, and how lines read."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from tasuki_mp.demo import show, summary
from tasuki_mp.demo.alone import Alone
from tasuki_mp.demo.analysis import TOP, FileReport, Function
from tasuki_mp.demo.batch import FinishedJob
from tasuki_mp.demo.sources import find_sources, stdlib_folder, warm_up

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OWNER = uuid4()


def job(
    path: str = "/lib/a.py",
    *,
    started: float | None = 0.0,
    finished: float = 1.0,
    functions: list[Function] | None = None,
    status: str = "completed",
    owner: UUID = OWNER,
) -> FinishedJob:
    report = FileReport(10, 20, len(functions or []), 3, functions or [])
    return FinishedJob(
        status=status,
        path=path,
        result=msgspec.json.encode(report).decode() if status == "completed" else None,
        error_type=None if status == "completed" else "SyntaxError",
        error_message=None if status == "completed" else "bad\nline",
        cpu_seconds=0.5,
        started_at=None if started is None else NOON + timedelta(seconds=started),
        finished_at=NOON + timedelta(seconds=finished),
        owner=owner,
    )


def test_totals_are_those_of_completed_files() -> None:
    found = summary.found([job(), job("/lib/b.py"), job("/lib/c.py", status="failed")])
    assert (found.files, found.lines, found.tokens, found.complexity) == (3, 20, 40, 6)
    assert [failed.path for failed in found.failed] == ["/lib/c.py"]


def test_most_complex_functions_are_those_of_all_files_together() -> None:
    ones = [Function(f"one{n}", n, 2 * n) for n in range(1, TOP + 1)]
    twos = [Function(f"two{n}", n, 2 * n + 1) for n in range(1, TOP + 1)]
    found = summary.found([job("/lib/a.py", functions=ones), job("/lib/b.py", functions=twos)])
    assert [function.complexity for function, _ in found.most_complex] == list(range(21, 11, -1))
    assert found.most_complex[0] == (twos[-1], "/lib/b.py")


def test_among_equals_the_order_is_the_same_each_time() -> None:
    same = [job(f"/lib/{name}.py", functions=[Function("f", 1, 5)]) for name in "cab"]
    assert [path for _, path in summary.found(same).most_complex] == ["/lib/a.py", "/lib/b.py", "/lib/c.py"]


def test_pace_lies_between_first_start_and_last_finish() -> None:
    pace = summary.pace([job(started=2, finished=4), job(started=1, finished=3), job(started=3.5, finished=5)])
    assert pace == summary.Pace(jobs=3, seconds=4.0, cpu_seconds=1.5, supervisors=1)
    assert pace.jobs_per_second == 0.75


def test_pace_tells_how_many_supervisors_took_part() -> None:
    pace = summary.pace([job(), job(owner=uuid4())])
    assert pace
    assert pace.supervisors == 2


@pytest.mark.parametrize("jobs", [[], [job(started=None, status="canceled")]])
def test_there_is_no_pace_without_a_start(jobs: list[FinishedJob]) -> None:
    assert summary.pace(jobs) is None


def test_sources_leave_out_what_is_installed_and_what_is_no_file(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "deep/er/c.py", "site-packages/x.py", "__pycache__/y.py", "notes.txt", "d.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")).touch()
    assert find_sources(tmp_path) == [tmp_path / "a.py", tmp_path / "b.py", tmp_path / "deep" / "er" / "c.py"]


def test_the_standard_library_is_found() -> None:
    sources = find_sources(stdlib_folder())
    assert stdlib_folder().resolve() / "bisect.py" in sources
    assert len(sources) > 400
    assert not [path for path in sources if "site-packages" in path.parts]


def test_warming_up_survives_a_file_that_is_gone(tmp_path: Path) -> None:
    warm_up([tmp_path / "gone.py"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tasuki-mp 0.1.0, database shop as ann", None),
        ('{"time": "t", "level": "error", "event": "job failed", "job": 3}', None),
        ('{"time": "t", "level": "warning", "event": "child died", "slot": 1}', "warning: child died  slot=1"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_only_news_of_the_supervisors_log_is_shown(line: str, words: str | None) -> None:
    assert show.log_line(line) == words


def test_paths_are_shown_below_their_common_folder() -> None:
    root = show.common_root(["/lib/a/b.py", "/lib/c.py"])
    assert root == "/lib"
    assert show.shorten("/lib/a/b.py", root) == "a/b.py"
    assert show.common_root([]) == ""
    assert show.shorten("/lib/a.py", "") == "/lib/a.py"


def test_failure_reads_as_type_and_message() -> None:
    assert show.why_failed(job(status="failed")) == "SyntaxError: bad\nline"


def test_alone_counts_files_that_cannot_be_read_too(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("x = 1\n")
    bad.write_text("def f(:\n")
    paths = [good, bad, tmp_path / "gone.py"]
    done = subprocess.run(
        [sys.executable, "-m", "tasuki_mp.demo.alone"],
        input=b"".join(os.fsencode(path) + b"\0" for path in paths),
        capture_output=True,
        check=True,
    )
    took = msgspec.json.decode(done.stdout.splitlines()[-1], type=Alone)
    assert 0 < took.seconds < 10
    assert 0 < took.cpu_seconds < 10
