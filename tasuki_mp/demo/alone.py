"""The demo's work in one process, to compare with: `python -m tasuki_mp.demo.alone`, paths NUL-separated on stdin.

Prints how many files are done while it works, and at the end a JSON object with the seconds it took. The clock starts
when the interpreter is up and everything is imported, and nothing but the analysis is counted: no database, no pipes.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, process_time
from typing import Final

import msgspec

from tasuki_mp.demo.analysis import analyse_file

_SAY_EVERY: Final = 0.25


class Alone(msgspec.Struct, frozen=True):
    """How long one process took, in seconds of the clock on the wall and of CPU time."""

    seconds: float
    cpu_seconds: float


def main() -> None:
    paths = [Path(os.fsdecode(name)) for name in sys.stdin.buffer.read().split(b"\0") if name]
    started, cpu_started = monotonic(), process_time()
    said = started
    for done, path in enumerate(paths, 1):
        with suppress(SyntaxError, OSError):  # the jobs report these; here they only cost their time
            analyse_file(path)
        if monotonic() - said > _SAY_EVERY:
            said = monotonic()
            _say(str(done))
    took = Alone(monotonic() - started, process_time() - cpu_started)
    _say(msgspec.json.encode(took).decode())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
