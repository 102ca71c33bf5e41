"""How commands show things to people: tables, times and durations; and the same tables, plain, to pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from tasuki_mp import limits
from tasuki_mp.logs import UNSAFE, escape

if TYPE_CHECKING:
    from rich.text import Text

GAP: Final = 2
LEAST: Final = 6
"""Columns of a screen that a column of a table keeps at least."""

size: Final = limits.size
Align = Literal["left", "right"]
Style = Literal["", "bold", "dim", "red", "yellow", "green"]


class Cell(msgspec.Struct, frozen=True):
    """A table's cell; the style is for terminals only."""

    text: str
    style: Style = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table under a title. Columns are (heading, alignment); those to the left give way on a narrow screen."""

    title: str = ""
    columns: Sequence[tuple[str, Align]]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    """A line below it."""
    spare: Sequence[str] = ()
    """Headings of columns that a narrow screen goes without, before any column gives way; the first goes first."""

    def plain(self) -> str:
        """Aligned text without any escape sequence, as wide as it needs to be. Without rows only title and note."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self._lines(None))

    def rich(self, width: int) -> Text:
        """The same with colours and cut to that many columns; numbers, which stand to the right, stay whole."""
        from rich.text import Text

        lines = [Text.assemble(*line, no_wrap=True, overflow="ellipsis") for line in self._lines(width)]
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)

    def _lines(self, width: int | None) -> Iterator[list[tuple[str, str]]]:
        if self.title:
            yield [(self.title, "bold")]
        if self.rows:
            headings = [Cell(heading, "dim") for heading, _ in self.columns]
            cells = [headings, *([_safe(cell) for cell in row] for row in self.rows)]
            widest = [max(len(row[index].text) for row in cells) for index in range(len(self.columns))]
            used = self._used([index for index, wide in enumerate(widest) if wide], widest, width)
            aligns = [self.columns[index][1] for index in used]
            widths = _fit([widest[index] for index in used], aligns, width)
            for row in cells:
                line: list[tuple[str, str]] = []
                for index, align, room in zip(used, aligns, widths, strict=True):
                    line += [(" " * GAP, "")] if line else []
                    line.append((_placed(row[index].text, align, room), row[index].style))
                yield line
        if self.note:
            yield [(self.note, "dim")]

    def _used(self, columns: list[int], widest: list[int], most: int | None) -> list[int]:
        """These columns without as many of the spare ones as must go."""
        for heading in self.spare:
            if most is None or sum(widest[index] + GAP for index in columns) - GAP <= most:
                break
            columns = [index for index in columns if self.columns[index][0] != heading]
        return columns


def _safe(cell: Cell | str) -> Cell:
    return Cell(escape(cell)) if isinstance(cell, str) else Cell(escape(cell.text), cell.style)


def _fit(widths: list[int], aligns: list[Align], most: int | None) -> list[int]:
    """Take from the widest of the columns that may give way, until all fit or none can give any more."""
    widths = list(widths)
    while most is not None and sum(widths) + GAP * (len(widths) - 1) > most:
        giving = [index for index, align in enumerate(aligns) if align == "left" and widths[index] > LEAST]
        if not giving:
            break
        widths[max(giving, key=widths.__getitem__)] -= 1
    return widths


def _placed(text: str, align: Align, room: int) -> str:
    if len(text) > room:
        return text[: room - 1] + "…"
    return text.rjust(room) if align == "right" else text.ljust(room)


def print_tables(tables: Sequence[Table]) -> None:
    """Write the tables: with colours and as wide as the window in a terminal, plain and whole elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, markup=False, soft_wrap=True)
        for index, table in enumerate(tables):
            console.print(*([""] if index else []), table.rich(console.width), sep="\n")
    else:
        print("\n\n".join(table.plain() for table in tables))


def json_line(value: object) -> str:
    """The value as one line of JSON that a terminal can't mistake for commands: what is unsafe stays escaped."""
    return harmless(msgspec.json.encode(value).decode())


def harmless(json: str) -> str:
    """The same JSON, in which a terminal finds no commands."""
    # In JSON that is valid already, such characters stand in strings only, where an escape means the same.
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json)


def one_line(words: str) -> str:
    """The words on one line, safe for a terminal."""
    return escape(" ".join(words.split()))


def number(value: int) -> str:
    """`1,234`."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """`90 µs`, `250 ms`, `1.5 s`, `12 s`, `3m 4s`, `5h 6m`, `7d 8h`: two figures that matter."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if 0 < seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def times(count: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def progress(fraction: float | None, note: str | None) -> str:
    """`40 % chunk 12 of 30`; rounded down, as 100 % means that nothing is left."""
    percent = "" if fraction is None else f"{int(fraction * 100 + 1e-4)} %"
    return f"{percent} {note or ''}".strip()


def instant(when: datetime, now: datetime) -> str:
    """`2026-05-01 12:00:03 +0200 (5 s ago)`, in the local time zone."""
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S %z} ({relative(when, now)})"


def relative(when: datetime, now: datetime) -> str:
    """`5 s ago` or `in 5 s`."""
    gap: timedelta = now - when
    seconds = gap.total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def indent(text: str, prefix: str, *, limit: int = 32_768) -> str:
    """Several lines, safe for a terminal, each behind the prefix."""
    safe = escape(text.rstrip("\n"), limit=limit, keep="\n\t")
    return "\n".join(f"{prefix}{line}" for line in safe.split("\n"))
