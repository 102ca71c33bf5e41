"""`python -m scripts.bench NAME`: one row of docs/benchmarks.md, measured beside its reference, alternating.

    python -m scripts.bench all --pairs 3
    python -m scripts.bench cpu10 --procs 2 --pairs 10 --json

The database is an embedded PostgreSQL of the run's own, with fsync and synchronous_commit on. A ratio above 1 means that the
program was faster than its reference; latency is the other way round and has no ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench import app as handlers
from scripts.bench import sides
from scripts.harness import host
from scripts.harness.server import scratch_server

Pairs = list[tuple[float, float]]


class Bench:
    """What every measurement needs: the database, a folder for logs, and how much to do."""

    def __init__(self, dsn: str, folder: Path, given: argparse.Namespace) -> None:
        self.dsn = dsn
        self.folder = folder
        self.procs: int = given.procs
        self.pairs: int = given.pairs
        self.seconds: float = given.seconds
        self.jobs: int = given.jobs

    def noop(self) -> dict[str, Any]:
        """Jobs that do nothing; jobs per second in total and steady, nothing beside."""
        runs = [
            sides.run_jobs(self.dsn, self.folder, handlers.noop.job(), self.jobs, self.procs) for _ in range(self.pairs)
        ]
        return {
            "jobs": self.jobs,
            "total jobs/s": spread([self.jobs / run.total for run in runs]),
            "steady jobs/s": spread([self.jobs / run.steady for run in runs]),
        }

    def cpu(self, milliseconds: float) -> dict[str, Any]:
        """Jobs of some CPU time against the bare pool, at chunksize 1 and at the best chunksize."""
        loops = handlers.calibrated(milliseconds)
        count = max(self.procs, round(self.seconds * self.procs / milliseconds * 1000))
        best_chunk = max(1, min(64, count // (self.procs * 8)))
        ours, single, chunked = [], [], []
        for _ in range(self.pairs):
            ours.append(sides.run_jobs(self.dsn, self.folder, handlers.burn.job(loops), count, self.procs).steady)
            single.append(sides.run_pool(loops, count, self.procs, 1))
            chunked.append(sides.run_pool(loops, count, self.procs, best_chunk))
        best = [min(pair) for pair in zip(single, chunked, strict=True)]
        return {
            "jobs": count,
            "jobs/s": spread([count / seconds for seconds in ours]),
            "pool jobs/s, chunksize 1": spread([count / seconds for seconds in single]),
            f"pool jobs/s, chunksize {best_chunk}": spread([count / seconds for seconds in chunked]),
            "ratio to chunksize 1": spread([pool / mine for pool, mine in zip(single, ours, strict=True)]),
            "ratio to the best": spread([pool / mine for pool, mine in zip(best, ours, strict=True)]),
        }

    def enqueue_many(self) -> dict[str, Any]:
        """Rows per second through `enqueue_many`, and through a bare binary COPY."""
        rows = self.jobs * 4
        pairs = self._alternate(lambda: sides.enqueue_many(self.dsn, rows), lambda: sides.bare_copy(self.dsn, rows))
        return {
            "rows": rows,
            "rows/s": spread([rows / ours for ours, _ in pairs]),
            "bare COPY rows/s": spread([rows / bare for _, bare in pairs]),
            "ratio": spread([bare / ours for ours, bare in pairs]),
        }

    def enqueue_one(self) -> dict[str, Any]:
        """Microseconds of one enqueue in the caller's transaction, and of a bare INSERT."""
        pairs = self._alternate(lambda: sides.enqueue_one(self.dsn, 2000), lambda: sides.bare_insert(self.dsn, 2000))
        return {
            "µs": spread([ours * 1e6 for ours, _ in pairs]),
            "bare INSERT µs": spread([bare * 1e6 for _, bare in pairs]),
            "ratio of times": spread([ours / bare for ours, bare in pairs]),
        }

    def latency(self) -> dict[str, Any]:
        """Milliseconds from commit to the handler's first line on an idle supervisor, and of a bare NOTIFY."""
        ours = sides.latencies(self.dsn, self.folder, 300, self.procs)
        bare = sides.notify_round_trips(self.dsn, 300)
        return {
            "p50 ms": round(percentile(ours, 50), 2),
            "p99 ms": round(percentile(ours, 99), 2),
            "bare NOTIFY p50 ms": round(percentile(bare, 50), 2),
            "bare NOTIFY p99 ms": round(percentile(bare, 99), 2),
        }

    def _alternate(self, ours: Callable[[], float], bare: Callable[[], float]) -> Pairs:
        return [(ours(), bare()) for _ in range(self.pairs)]


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "noop": Bench.noop,
    "cpu1": lambda bench: bench.cpu(1),
    "cpu10": lambda bench: bench.cpu(10),
    "cpu100": lambda bench: bench.cpu(100),
    "enqueue-many": Bench.enqueue_many,
    "enqueue-one": Bench.enqueue_one,
    "latency": Bench.latency,
}


def spread(values: list[float]) -> str:
    """The median, and the least and the greatest."""
    digits = 2 if abs(statistics.median(values)) < 10 else 0
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def percentile(values: list[float], percent: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=[*MEASURES, "all"])
    parser.add_argument("--procs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=3, help="alternating runs of the program and its reference")
    parser.add_argument("--seconds", type=float, default=10, help="length of a run of the cpu measurements")
    parser.add_argument("--jobs", type=int, default=50_000, help="jobs of noop; a quarter of the rows of enqueue-many")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results: dict[str, Any] = {"machine": host.description(), "procs": given.procs, "pairs": given.pairs}
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-bench-"))
    with scratch_server() as server:
        bench = Bench(server.dsn, folder, given)
        for name in MEASURES if given.name == "all" else [given.name]:
            steal = host.Steal()
            results[name] = {**MEASURES[name](bench), "steal": f"{steal.share:.0%}"}
            if not given.json:
                show(name, results)
    if given.json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    shutil.rmtree(folder)
    return 0


def show(name: str, results: dict[str, Any]) -> None:
    print(f"\n{name}  ({results['machine']}; {results['procs']} procs)")
    for what, value in results[name].items():
        print(f"  {what:28} {value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
