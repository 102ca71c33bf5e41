"""How commands show things: plain to pipes, cut to the width of a terminal, safe for both."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tasuki_mp.cli import text
from tasuki_mp.cli.text import Cell, Table

LONG = Table(
    title="running: 2",
    columns=[("ID", "right"), ("HANDLER", "left"), ("HOST", "left"), ("PID", "right"), ("", "left")],
    rows=[
        ["1", "resize_everything_in_the_archive", "worker-1.example.com", "4711", ""],
        ["1000000", "evil\x1b[31m[red]\nx", "w", "1", Cell("", "red")],
    ],
    note="and 7 more",
)


def test_plain_is_aligned_whole_and_safe() -> None:
    assert LONG.plain().splitlines() == [
        "running: 2",
        "     ID  HANDLER                           HOST                   PID",
        "      1  resize_everything_in_the_archive  worker-1.example.com  4711",
        r"1000000  evil\x1b[31m[red]\nx              w                        1",
        "and 7 more",
    ]


@pytest.mark.parametrize("width", [60, 40, 38])
def test_a_terminal_cuts_texts_and_never_numbers(width: int) -> None:
    lines = LONG.rich(width).plain.splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[3].split()[0] == "1000000"
    assert lines[2].split()[-1] == "4711"
    assert "…" in lines[2]
    assert all(line.isprintable() for line in lines)


def test_a_terminal_that_is_too_narrow_keeps_the_numbers() -> None:
    assert LONG.rich(10).plain.splitlines()[2].split() == ["1", "resiz…", "worke…", "4711"]


def test_without_rows_only_title_and_note_are_left() -> None:
    table = Table(title="supervisors: 0", columns=[("HOST", "left")], rows=[], note="start one")
    assert table.plain() == "supervisors: 0\nstart one"


def test_markup_means_nothing() -> None:
    table = Table(columns=[("A", "left")], rows=[[Cell("[bold]x[/bold]", "red")]])
    shown = table.rich(80)
    assert shown.plain.splitlines()[1] == "[bold]x[/bold]"
    assert [span.style for span in shown.spans] == ["dim", "red"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.0004, "400 µs"),
        (0.001, "1 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 0s"),
        (3599.4, "59m 59s"),
        (3600, "1h 0m"),
        (86_399, "23h 59m"),
        (90_000, "1d 1h"),
        (-5, "-5.0 s"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_instants_say_how_long_ago() -> None:
    now = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    assert text.instant(now - timedelta(minutes=2), now).endswith("(2m 0s ago)")
    assert text.instant(now + timedelta(hours=2), now).endswith("(in 2h 0m)")


def test_several_lines_are_indented_and_cut() -> None:
    assert text.indent("a\n\tb\x1b\n", "> ") == "> a\n> \tb\\x1b"
    assert text.indent("x" * 20, "", limit=5) == "xxxxx… (20 characters)"


def test_json_escapes_what_a_terminal_obeys_and_means_the_same() -> None:
    value = {"a": "\x9b31m\u202e\x7f é\n", "raw": msgspec.Raw(b'{"b": "\xc2\x9b"}')}
    line = text.json_line(value)
    assert line.isprintable()
    assert json.loads(line) == {"a": "\x9b31m\u202e\x7f é\n", "raw": {"b": "\x9b"}}


def test_progress_is_rounded_down_and_may_be_words_alone() -> None:
    assert text.progress(0.29, "chunk 2") == "29 % chunk 2"
    assert text.progress(0.9999, "") == "99 %"
    assert text.progress(1.0, None) == "100 %"
    assert text.progress(None, "warming up") == "warming up"
    assert text.progress(None, None) == ""
    assert [text.times(count) for count in (1, 2, 3)] == ["once", "twice", "3 times"]
