"""The reference for jobs: a bare ProcessPoolExecutor with no queue at all, in a process of its own.

    python -m scripts.bench.pool PROCS CHUNKSIZE < STEPS

A line of the input for each job: its steps, 0 for one that does nothing. Prints the seconds from handing out the first job
until the last has ended, and the CPU seconds of all its processes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor

from scripts.bench import app


def main(procs: int, chunksize: int, steps: list[int]) -> tuple[float, float]:
    function = app.spin if any(steps) else app.nothing
    with ProcessPoolExecutor(procs) as pool:
        deque(pool.map(function, [min(steps)] * procs * 4), maxlen=0)  # its processes have started
        begin = time.perf_counter()
        deque(pool.map(function, steps, chunksize=chunksize), maxlen=0)
        took = time.perf_counter() - begin
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return took, sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    print(*main(*map(int, sys.argv[1:]), list(map(int, sys.stdin))))
