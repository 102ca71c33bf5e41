"""`python -m scripts.pictures [FOLDER]`: pictures of `tasuki-mp top`, taken of the real program in a terminal.

A supervisor works for some seconds on `scripts.pictures_app` with a PostgreSQL of its own, while `top` runs in windows of
80×24 and 200×50. What stands in them at last is written as `top-80x24.svg` and `top-200x50.svg`, into docs/ by default.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import Final

import psycopg
from rich.console import Console
from rich.text import Text

from scripts import pictures_app as jobs
from scripts.harness import host
from scripts.harness.runner import ROOT, Runner
from scripts.harness.server import scratch_server
from scripts.harness.waiting import wait

SIZES: Final = ((80, 24), (200, 50))
SECONDS: Final = 8.0
"""What the jobs have run before a picture is taken."""
LOOKS: Final = 4
"""How often `top` looks before its page is taken: rates and shares need two."""
_HOME: Final = b"\x1b[H"
_PATIENCE: Final = 30.0


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.pictures", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs")
    folder = parser.parse_args().folder
    scratch = Path(tempfile.mkdtemp(prefix="tasuki-mp-pictures-"))
    try:
        with scratch_server() as server:
            _enqueue(server.dsn)
            runner = Runner(
                *("--procs", "6", "--grace", "0s"),
                app="scripts.pictures_app:app",
                dsn=server.dsn,
                log=scratch / "log",
                tag=host.new_tag(),
            )
            with contextlib.closing(runner):
                begin = host.now()
                wait(lambda: host.now() - begin > SECONDS, 2 * SECONDS)
                for width, height in SIZES:
                    path = folder / f"top-{width}x{height}.svg"
                    # The socket's folder is of this run alone.
                    page = window(server.dsn, width, height).replace(str(server.socket.parent), "/run/postgresql")
                    path.write_text(drawn(page, width), encoding="utf-8")
                    print(path)
    finally:
        shutil.rmtree(scratch)


def _enqueue(dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        scenes = (("harbour", 240), ("market", 120), ("storm", 480))
        jobs.app.enqueue_many((jobs.render.job(scene, frames).priority(0) for scene, frames in scenes), conn)
        jobs.app.enqueue(jobs.train.job(epochs=18).priority(0), conn)
        jobs.app.enqueue_many((jobs.thumbnail.job(f"photos/{n}.png") for n in range(5000)), conn)
        jobs.app.enqueue_many((jobs.remind.job(n).after(hours=2) for n in range(120)), conn)


def window(dsn: str, width: int, height: int) -> str:
    """What stands in a window of that size in which `tasuki-mp top` has looked some times, with its colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    program = subprocess.Popen(
        [sys.executable, "-m", "tasuki_mp", "top", "--every", "1s"],
        env={**os.environ, "TASUKI_DSN": dsn, "TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    try:
        shown = b""
        # A page is whole when the next one begins.
        while shown.count(_HOME) <= LOOKS and select.select([ours], [], [], _PATIENCE)[0]:
            shown += os.read(ours, 1 << 16)
        os.write(ours, b"q")
        with contextlib.suppress(OSError):  # its end is closed
            while os.read(ours, 1 << 16):
                pass
        program.wait(_PATIENCE)
    finally:
        program.kill()
        os.close(ours)
    return shown.split(_HOME)[LOOKS].decode()


def drawn(page: str, width: int) -> str:
    """The page as SVG."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(page.replace("\r", "")), soft_wrap=True)
    svg = console.export_svg(title="tasuki-mp top", unique_id="top")
    return re.sub(
        r"\s*@font-face \{[^}]*\}", "", svg
    )  # which a viewer would fetch from elsewhere; any font of one width will do


if __name__ == "__main__":
    main()
