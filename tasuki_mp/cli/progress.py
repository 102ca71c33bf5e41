"""A progress bar for people at a terminal; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[float, float | None, str], None]
"""How far, of how much (None: nobody knows), and a few words."""


@contextmanager
def bar(what: str) -> Iterator[Report]:
    """A bar on standard error while it is a terminal, which is gone at the end."""
    if not sys.stderr.isatty():
        yield lambda _done, _total, _words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None, words="")

        def report(done: float, total: float | None, words: str) -> None:
            shown.update(task, completed=done, total=total, words=words)

        yield report
