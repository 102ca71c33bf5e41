"""The demo's application: one handler, one job per source file."""

from __future__ import annotations

from pathlib import Path

from tasuki_mp import Tasuki
from tasuki_mp.demo.analysis import FileReport, analyse_file

QUEUE = "demo"

app = Tasuki()


@app.handler(queue=QUEUE, fail_on=(SyntaxError, OSError))
def analyse(path: Path) -> FileReport:
    """Report on one file. One that can't be parsed or read won't get better, so it fails at once."""
    return analyse_file(path)
