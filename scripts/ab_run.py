"""What `scripts.ab` runs in each of two checkouts: one benchmark, once, and its figures as JSON.

It is the same file for both, and uses of their `scripts` only what has hardly changed. Everything that it starts is
adopted and waited for, so that the CPU time of all of it is known.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from scripts.bench import app
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.server import Server, scratch_server
from scripts.harness.waiting import wait
from tasuki_mp.job import Job

PR_SET_CHILD_SUBREAPER: Final = 36


def main(name: str, jobs: int, procs: int) -> dict[str, float]:
    """Jobs a second, and microseconds of CPU time for a job: the program's, PostgreSQL's, and both."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl")
    with (
        tempfile.TemporaryDirectory(prefix="tasuki-mp-ab-") as folder,
        scratch_server() as server,
        closing(Stage(server.dsn, Path(folder), procs=procs)) as stage,
    ):
        made = _jobs(name, jobs)
        postgres, program = _postgres_cpu(server), _program_cpu()
        if name == "enqueue-many":
            began = time.perf_counter()
            app.app.enqueue_many(made, stage.conn)
            seconds = time.perf_counter() - began
        else:
            _, seconds = stage.run_jobs(made)
        if not wait(lambda: _reap(stage.tag), 30):
            raise RuntimeError("processes of the program are left behind")
        program = (_program_cpu() - program) / jobs * 1e6
        postgres = (_postgres_cpu(server) - postgres) / jobs * 1e6
        return {"rate": jobs / seconds, "program": program, "postgres": postgres, "cpu": program + postgres}


def _jobs(name: str, jobs: int) -> Iterator[Job]:
    if name.startswith("cpu"):
        # A fixed amount of work: what one checkout measures of the machine must not differ from what the other does.
        return itertools.repeat(app.burn.job(steps=int(name.removeprefix("cpu")) * 10_000), jobs)
    return itertools.repeat(app.noop.job(), jobs)


def _program_cpu() -> float:
    """Seconds of this process, and of those that it has waited for."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _postgres_cpu(server: Server) -> float:
    """Seconds of the server: its processes that live, and those that have ended."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().partition("\n")[0])
    return sum(map(host.cpu_seconds, [postmaster, *(each.pid for each in host.children_of(postmaster))]))


def _reap(tag: str) -> bool:
    """Whether nothing with that tag is left, neither alive nor as a zombie of ours."""
    for each in host.children_of(os.getpid()):
        if each.state == "Z":
            os.waitpid(each.pid, 0)
    return not host.tagged(tag)


if __name__ == "__main__":
    json.dump(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
