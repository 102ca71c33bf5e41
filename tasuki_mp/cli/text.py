"""How commands show things to people: tables, times and durations; and the same tables, plain, to pipes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from tasuki_mp.logs import escape

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Align = Literal["left", "right"]
Style = Literal["", "bold", "dim", "red", "yellow", "green"]


class Cell(msgspec.Struct, frozen=True):
    """A table's cell; the style is for terminals only."""

    text: str
    style: Style = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table under a title. Columns are (heading, alignment); a cell may be a plain text."""

    title: str = ""
    columns: Sequence[tuple[str, Align]]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    """A line below it."""

    def plain(self) -> str:
        """Aligned text without any escape sequence, as wide as it needs to be; no heading, title or note is lost."""
        texts = [[escape(_text(cell)) for cell in row] for row in self.rows]
        lines = [[heading for heading, _ in self.columns], *texts]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        body = [
            "  ".join(
                text.rjust(width) if align == "right" else text.ljust(width)
                for text, width, (_, align) in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*([self.title] if self.title else []), *body, *([self.note] if self.note else [])])

    def rich(self) -> RichTable:
        """The same for a terminal, which cuts what does not fit."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            caption=Text(self.note, style="dim") if self.note else None,
            box=None,
            title_justify="left",
            caption_justify="left",
            pad_edge=False,
            header_style="dim",
            padding=(0, 2, 0, 0),
        )
        for heading, align in self.columns:
            # Numbers are never cut short: half a number is a wrong number.
            table.add_column(
                heading, justify=align, no_wrap=True, overflow="ellipsis", min_width=_least(align, heading)
            )
        for row in self.rows:
            table.add_row(*(Text(escape(_text(cell)), style=_style(cell)) for cell in row))
        return table


def _text(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def _style(cell: Cell | str) -> str:
    return "" if isinstance(cell, str) else cell.style


def _least(align: Align, heading: str) -> int:
    return len(heading) if align == "right" else min(len(heading), 8)


def number(value: int) -> str:
    """`1,234`."""
    return f"{value:,}"


def duration(seconds: float) -> str:
    """`0.25 s`, `12 s`, `3m 4s`, `5h 6m`, `7d 8h`: two figures that matter."""
    if seconds < 0:
        return "-" + duration(-seconds)
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


def instant(when: datetime, now: datetime) -> str:
    """`2026-05-01 12:00:03 +0200 (5 s ago)`, in the local time zone."""
    local = when.astimezone()
    gap: timedelta = now - when
    seconds = gap.total_seconds()
    relative = f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"
    return f"{local:%Y-%m-%d %H:%M:%S %z} ({relative})"


def indent(text: str, prefix: str, *, limit: int = 32_768) -> str:
    """Several lines, safe for a terminal, each behind the prefix."""
    safe = escape(text.rstrip("\n"), limit=limit, keep="\n\t")
    return "\n".join(f"{prefix}{line}" for line in safe.split("\n"))
