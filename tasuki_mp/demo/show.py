"""How the demo looks: a live bar and a table in a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tasuki_mp.demo.batch import FinishedJob
from tasuki_mp.demo.summary import Found, Pace
from tasuki_mp.logs import escape

_PLAIN_WIDTH: Final = 120
_PLAIN_STEPS: Final = 10

Advance = Callable[[int], None]
"""Say how many are done by now."""


def console() -> Console:
    """Writes to stdout. Where that is no terminal, lines are neither coloured nor folded at 80 columns."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=True)


def say(to: Console, text: str) -> None:
    """One line; above the bar when there is one."""
    to.print(escape(text, limit=None))


@contextmanager
def progress(to: Console, label: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """A live bar, or a line for each tenth."""
    if not to.is_terminal:
        yield _plain_progress(to, label, total, done)
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), rate)
    with Progress(*columns, console=to) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")
        started = monotonic()

        def advance(now_done: int) -> None:
            seconds = monotonic() - started
            rate = f"{(now_done - done) / seconds:.0f} a second" if seconds > 1 else ""
            bar.update(task, completed=now_done, rate=rate)

        yield advance


def _plain_progress(to: Console, label: str, total: int, done: int) -> Advance:
    started = monotonic()
    step = done * _PLAIN_STEPS // max(total, 1)

    def advance(now_done: int) -> None:
        nonlocal step
        reached = now_done * _PLAIN_STEPS // max(total, 1)
        if reached > step:
            step = reached
            say(to, f"{label}: {now_done} of {total} after {monotonic() - started:.1f} s")

    return advance


def show_found(to: Console, found: Found, root: str) -> None:
    """The failed files, the ten most complex functions, and the totals; paths as they are below `root`."""
    if found.failed:
        say(to, f"{len(found.failed)} of {found.files} files could not be analysed:")
        for job in found.failed:
            say(to, f"  {shorten(job.path, root)}: {why_failed(job)}")
    table = Table(title="the ten most complex functions", title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("complexity", justify="right")
    table.add_column("function", overflow="fold")
    table.add_column("file and line", overflow="fold")
    for function, path in found.most_complex:
        place = f"{shorten(path, root)}:{function.line}"
        table.add_row(str(function.complexity), escape(function.name), escape(place))
    to.print()
    to.print(table)
    mean = found.complexity / found.functions if found.functions else 0.0
    say(to, f"files: {found.files:,} ({len(found.failed)} failed)")
    say(to, f"lines: {found.lines:,}")
    say(to, f"tokens: {found.tokens:,}")
    say(to, f"functions: {found.functions:,} (mean complexity {mean:.2f})")


def show_pace(to: Console, pace: Pace, *, procs: int) -> None:
    """How fast the jobs went."""
    say(to, f"jobs per second: {pace.jobs_per_second:.0f}")
    say(to, f"seconds with {procs} {'process' if procs == 1 else 'processes'}: {pace.seconds:.2f}")
    say(to, f"CPU seconds used: {pace.cpu_seconds:.2f}")


def log_line(line: str) -> str | None:
    """A line of the supervisor's JSON log as words; None for one that tells nothing new.

    Failed jobs are listed at the end, and the database has been named before.
    """
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return None if line.startswith("tasuki-mp ") else line
    event, level = fields.pop("event", ""), fields.pop("level", "")
    fields.pop("time", None)
    if event == "job failed":
        return None
    return f"{level}: {event}  " + " ".join(f"{name}={value}" for name, value in fields.items())


def why_failed(job: FinishedJob) -> str:
    """The error in one line."""
    if job.error_type is None:
        return job.status
    return f"{job.error_type}: {job.error_message or 'no message'}"


def common_root(paths: Iterable[str]) -> str:
    """The folder that all of these paths are in."""
    folders = {str(Path(path).parent) for path in paths}
    return os.path.commonpath(folders) if folders else ""


def shorten(path: str, root: str) -> str:
    return os.path.relpath(path, root) if root else path
