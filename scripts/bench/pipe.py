"""The row about a pipe: `tasuki-mp enqueue --file -` as a crontab runs it, against a bare COPY of the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Final

from scripts.bench import app
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from tasuki_mp.job import JobRow
from tasuki_mp.store import bulk, copying
from tasuki_mp.store.bulk import Intake

# In between, so that the peak of memory is the program's own: what is forked from a large process counts as large.
_MEASURED: Final = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:]).returncode
seconds = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, seconds, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime]))
"""


def pipe(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """A file through a pipe, the program's start included."""

    def measure() -> Pair:
        with tempfile.TemporaryFile() as file:
            file.writelines(line.encode() + b"\n" for line in _payloads(jobs))
            file.seek(0)
            stage.clear()
            seconds, memory, cpu = _piped(stage, file.fileno())
        stage.clear()
        server = host.cpu_seconds(stage.conn.info.backend_pid)
        bare = _bare(stage, jobs)
        server = host.cpu_seconds(stage.conn.info.backend_pid) - server
        extra = {
            "peak of memory, MiB": memory,
            "the program's CPU time for a job, µs": cpu / jobs * 1e6,
            "the server's for the bare COPY, µs": server / jobs * 1e6,
        }
        return Pair(jobs / seconds, jobs / bare, bare / seconds, extra)

    return measure


def _payloads(jobs: int) -> list[str]:
    return [f'{{"steps":{number}}}' for number in range(jobs)]


def _piped(stage: Stage, file: int) -> tuple[float, float, float]:
    """Seconds, MiB, seconds of CPU time."""
    command = [sys.executable, "-m", "tasuki_mp", "enqueue", "burn", "--file", "-", "--app", "scripts.bench.app:app"]
    environment = {**os.environ, "TASUKI_DSN": stage.dsn}
    with subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *command],
            stdin=cat.stdout,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    code, seconds, memory, cpu = json.loads(done.stdout)
    if code != 0:
        raise RuntimeError(f"the program ended with exit code {code}: {done.stderr}")
    return seconds, memory, cpu


def _bare(stage: Stage, jobs: int) -> float:
    """The same rows as one COPY in one transaction, their bytes made beforehand."""
    intake = Intake(JobRow(handler=app.burn.name, payload=text) for text in _payloads(jobs))
    draw = bulk.draw_ids(stage.conn, jobs, intake)
    rows = (row for part in (intake.first, intake.rows) for row in part)
    data = list(copying.Copied().pieces(rows, draw))
    begin = time.perf_counter()
    with stage.conn.transaction(), stage.conn.cursor().copy(copying.COPY) as copy:
        for piece in data:
            copy.write(piece)
    return time.perf_counter() - begin
