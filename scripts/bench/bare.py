"""References in processes of their own, for what a process costs.

python -m scripts.bench.bare memory SLOTS JOBS   what each process of a bare pool has for itself alone, MiB as JSON
python -m scripts.bench.bare start               CLOCK_BOOTTIME in seconds at a forkserver's first child
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from scripts.bench import app, meter
from scripts.harness import host

PROGRAM: Final = ("tasuki_mp.cli.run", "tasuki_mp.supervisor.supervisor", "tasuki_mp.supervisor.http", "uvloop")
"""What the program has imported by the time that it runs a job."""
CHILD: Final = ("tasuki_mp.child.main", "scripts.bench.app")


def memory(slots: int, jobs: int) -> list[float]:
    with ProcessPoolExecutor(slots) as pool:
        deque(pool.map(app.nothing, range(jobs)), maxlen=0)
        return [meter.memory(each.pid)["Private"] for each in multiprocessing.active_children() if each.pid]


def start() -> None:
    for name in PROGRAM:
        importlib.import_module(name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(CHILD))
    process = context.Process(target=tell)
    process.start()
    process.join()


def tell() -> None:
    print(host.now(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(json.dumps(memory(*map(int, sys.argv[2:]))))
    else:
        start()
