"""The three pictures of docs/benchmarks.md, as SVG.

They carry their own colours for light and dark, background included, so that they can be read on any page.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from scripts.bench.backlog import SMALL
from scripts.bench.figures import Row
from scripts.bench.peers import PGQUEUER_BY_DEFAULT

WIDTH: Final = 760
LEFT: Final = 190
"""Where the scale begins: what is before it is for names."""
RIGHT: Final = 720
TOP: Final = 76
STEP: Final = 30
"""From one line of names to the next."""
STYLE: Final = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.note { fill: #59636e; font-size: 12px; }
.back { fill: #ffffff; stroke: #d1d9e0; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.tick { stroke: #59636e; stroke-width: 1.5; }
.best { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3; }
.ours { fill: #0b6bcb; }
.other { fill: #8c959f; }
.dot { fill: #0b6bcb; fill-opacity: 0.45; }
.line { stroke: #0b6bcb; stroke-width: 2; fill: none; }
.goal { stroke: #bc4c00; stroke-width: 3; }
.middle { stroke: #0b6bcb; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .note { fill: #9198a1; }
  .back { fill: #0d1117; stroke: #3d444d; }
  .grid { stroke: #2f353d; }
  .tick, .best { stroke: #9198a1; }
  .ours { fill: #4ea1f7; }
  .other { fill: #656c76; }
  .dot { fill: #4ea1f7; }
  .line, .middle { stroke: #4ea1f7; }
  .goal { stroke: #f0883e; }
}"""


# ── the three pictures ────────────────────────────────────────────────────────────────────────────────────────────────


def noop(rows: Mapping[str, Row]) -> Iterator[str]:
    """Bars: who runs how many jobs that do nothing."""
    bars: list[tuple[str, str, Sequence[float], str]] = []
    ours: list[float] = []
    for name, label, what in (
        ("noop-pool", "bare ProcessPoolExecutor", "no queue at all"),
        ("noop", "pgqueuer, best batches", "Postgres, no isolation"),
        ("noop-celery", "Celery, prefork", "Redis that keeps nothing"),
    ):
        if name in rows:
            bars.append((label, what, rows[name].each("reference"), "other"))
            ours += rows[name].each("ours")
    if "noop" in rows and (by_default := rows["noop"].also(PGQUEUER_BY_DEFAULT)):
        bars.append(("pgqueuer, its default", "Postgres, no isolation", by_default, "other"))
    if not bars:
        return
    bars.insert(0, ("tasuki-mp", "Postgres, isolated, fenced", ours, "ours"))
    yield from _head(
        "Jobs that do nothing, a second",
        "enqueued before; from the start of the command to the last finish; medians, and a tick for each run",
    )
    middles = [statistics.median(values) for _, _, values, _ in bars]
    most = _round_up(max(value for _, _, values, _ in bars for value in values))
    yield from _scale([most * part / 4 for part in range(5)], most, len(bars) * 1.6, "{:,.0f}")
    for number, ((label, what, values, kind), middle) in enumerate(zip(bars, middles, strict=True)):
        y = TOP + number * STEP * 1.6
        width = (RIGHT - LEFT) * middle / most
        yield f'<rect class="{kind}" x="{LEFT}" y="{y:.1f}" width="{max(1.0, width):.1f}" height="24" rx="3"/>'
        yield _text(LEFT - 10, y + 11, label, anchor="end")
        yield _text(LEFT - 10, y + 26, what, "note", anchor="end")
        inside = width > (RIGHT - LEFT) * 0.8
        fill = ' style="fill: #ffffff"' if inside else ""
        x, anchor = (LEFT + width - 8, "end") if inside else (LEFT + width + 8, "start")
        yield f'<text x="{x:.1f}" y="{y + 17:.1f}" text-anchor="{anchor}"{fill}>{middle:,.0f}</text>'
        for value in values:
            x = LEFT + (RIGHT - LEFT) * min(1.0, value / most)
            yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 27:.1f}" y2="{y + 33:.1f}"/>'


def shares(rows: Mapping[str, Row]) -> Iterator[str]:
    """Dots: which share of the best possible each pair reached."""
    shown = {name: row for name, row in rows.items() if row.goal is not None and row.goal <= 1 and name != "noop"}
    if not shown:
        return
    highest = max(1.2, min(1.6, max(max(row.each("ratio")) for row in shown.values())))
    yield from _head(
        "Share of the best possible",
        "a dot for each pair of runs, a bar for their median; 1 is what the reference reaches without our guarantees",
    )
    ticks = [part / 5 for part in range(int(highest * 5) + 1)]
    yield from _scale(ticks, highest, len(shown), "{:.1f}")
    bottom = TOP + STEP * len(shown)
    one = _x(1.0, highest)
    yield f'<line class="best" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 4}" y2="{bottom}"/>'
    for number, (name, row) in enumerate(shown.items()):
        y = TOP + number * STEP + STEP / 2
        yield _text(LEFT - 10, y + 4, name, anchor="end")
        if row.goal is not None:
            goal = _x(row.goal, highest)
            yield f'<line class="goal" x1="{goal:.1f}" x2="{goal:.1f}" y1="{y - 10}" y2="{y + 10}"/>'
        for ratio in row.each("ratio"):
            yield f'<circle class="dot" cx="{_x(ratio, highest):.1f}" cy="{y}" r="5"><title>{ratio:.2f}</title></circle>'
        middle = _x(row.ratio, highest)
        yield f'<line class="middle" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 7}" y2="{y + 7}"/>'
    y = bottom + 44
    yield f'<line class="goal" x1="{LEFT}" x2="{LEFT}" y1="{y - 13}" y2="{y + 3}"/>'
    yield _text(LEFT + 10, y, "goal", "note")
    yield f'<line class="middle" x1="{LEFT + 70}" x2="{LEFT + 70}" y1="{y - 12}" y2="{y + 2}"/>'
    yield _text(LEFT + 80, y, "median of the pairs", "note")
    yield f'<circle class="dot" cx="{LEFT + 225}" cy="{y - 5}" r="5"/>'
    yield _text(LEFT + 236, y, "one pair", "note")


def backlog(rows: Mapping[str, Row]) -> Iterator[str]:
    """A line: the rate with so many jobs due, as many in the future, as many in the archive, over the pair's other one."""
    row = rows.get("backlog")
    if row is None or not (found := row.also("due jobs")):
        return
    by_size: dict[float, list[float]] = {float(SMALL): [1.0]}
    for size, ratio in zip(found, row.each("ratio"), strict=True):
        by_size.setdefault(size, []).append(ratio)
    sizes = sorted(by_size)
    middles = [statistics.median(by_size[size]) for size in sizes]
    most = max(1.2, *(math.ceil(ratio * 5) / 5 for ratios in by_size.values() for ratio in ratios))
    yield from _head(
        "The rate, by what waits in the tables",
        f"jobs that do nothing, steady; 1 is the rate with {SMALL:,} due and nothing else, measured alternating",
    )
    height, low, high = 220, math.log10(sizes[0]) - 0.15, math.log10(sizes[-1]) + 0.15
    left = 90
    for part in range(round(most * 5) + 1):
        y = TOP + height * (1 - part / 5 / most)
        yield f'<line class="grid" x1="{left}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(left - 10, y + 4, f"{part / 5:.1f}", "note", anchor="end")
    if row.goal is not None:
        y = TOP + height * (1 - row.goal / most)
        yield f'<line class="goal" x1="{RIGHT - 24}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(RIGHT, y + 18, "goal", "note", anchor="end")
    points = []
    for size, middle in zip(sizes, middles, strict=True):
        x = left + (RIGHT - left) * (math.log10(size) - low) / (high - low)
        yield _text(x, TOP + height + 20, f"{size:,.0f}", "note", anchor="middle")
        for ratio in by_size[size]:
            yield f'<circle class="dot" cx="{x:.1f}" cy="{TOP + height * (1 - ratio / most):.1f}" r="5"/>'
        y = TOP + height * (1 - middle / most)
        points.append(f"{x:.1f},{y:.1f}")
        yield _text(x - 12, y - 8, f"{middle:.2f}", anchor="end")
    yield f'<polyline class="line" points="{" ".join(points)}"/>'
    yield _text(
        (left + RIGHT) / 2,
        TOP + height + 42,
        "jobs due, as many in the future and as many in the archive (logarithmic); the line joins medians",
        "note",
        anchor="middle",
    )


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(title: str, note: str) -> Iterator[str]:
    yield _text(24, 32, title, "title")
    yield _text(24, 52, note, "note")


def _scale(ticks: Sequence[float], most: float, lines: float, form: str) -> Iterator[str]:
    bottom = TOP + STEP * lines
    for tick in ticks:
        x = _x(tick, most)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom:.1f}"/>'
        yield _text(x, bottom + 18, form.format(tick), "note", anchor="middle")


def _x(value: float, most: float) -> float:
    return LEFT + (RIGHT - LEFT) * min(1.0, value / most)


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(parts: Sequence[str], machine: str) -> str:
    lowest = max(float(found) for part in parts for found in re.findall(r' y2?="([\d.]+)"', part))
    height = int(lowest) + 44
    note = _text(WIDTH - 24, height - 12, machine, "note", anchor="end")
    body = "\n".join([*parts, note])
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
        f"<style>\n{STYLE}\n</style>\n"
        f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n{body}\n</svg>\n'
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten: quarters of it are round as well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 6, 8, 10) if step * power >= value)
