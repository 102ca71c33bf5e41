"""`python -m scripts.bench NAME… [--json] [--procs N] [--pairs K]`: the real program against the limit, measured.

Ours and the reference run alternating, in the same minutes on the same machine; what counts is their ratio. The
program runs as its users run it: fsync and synchronous_commit on, fenced, archived, with its heartbeat.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.bench import (
    backlog,
    crowd,
    enqueueing,
    footprint,
    jobs,
    latency,
    mixed,
    payloads,
    peers,
    pipe,
    producing,
    starting,
    transaction,
    unlimited,
    venvs,
)
from scripts.bench.figures import Pair, Row
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.server import scratch_server


@dataclass(frozen=True)
class Size:
    """How much to do: seconds of the rows that last that long, jobs of noop (others do a multiple), rows in the tables."""

    seconds: float
    jobs: int
    backlog: int
    idle: float
    """Seconds."""


@dataclass(frozen=True)
class Benchmark:
    """`prepare` makes the function that measures one pair; it may look for the best reference first."""

    what: str
    unit: str
    reference: str
    target: str
    prepare: Callable[[Stage, Size], Callable[[], Pair]]
    least_pairs: int = 1
    """In a run of `all` or `full`, whatever `--pairs` says: rows that ask for more than 0.9 need more than others."""
    most_pairs: int = 100
    """Of rows that take long and say the same each time."""
    is_long: bool = False
    """Whether it is left out of `all`: it takes long, or needs what not every machine has."""


QUICK: Final = (5, 10.0, 500_000, 60.0)
"""Pairs, seconds, backlog, seconds of idle."""
FULL: Final = (10, 30.0, 5_000_000, 600.0)

_POOL: Final = "ProcessPoolExecutor.map, the best chunksize"

BENCHMARKS: Final = {
    "noop": Benchmark(
        "jobs that do nothing, enqueued before; from the start of the command to the last finish",
        *("jobs/s", "pgqueuer, the same", "2.5"),
        lambda stage, size: peers.noop(stage, jobs=size.jobs),
        is_long=True,
    ),
    "noop-celery": Benchmark(
        "jobs that do nothing, enqueued before; from the start of the command to the last finish",
        *("jobs/s", "Celery with Redis, the same", "30"),
        lambda stage, size: peers.celery(stage, jobs=size.jobs),
        is_long=True,
    ),
    "noop-pool": Benchmark(
        "jobs that do nothing, enqueued before; from the start of the command to the last finish",
        *("jobs/s", "ProcessPoolExecutor.map, chunksize 1", "10,000 jobs/s"),
        lambda stage, size: jobs.noop(stage, jobs=size.jobs),
    ),
    "cpu1": Benchmark(
        "jobs of 1 ms of pure Python; first start to last finish",
        *("jobs/s", _POOL, "0.85"),
        lambda stage, size: jobs.cpu(stage, ms=1, seconds=size.seconds),
    ),
    "cpu10": Benchmark(
        "jobs of 10 ms of pure Python; first start to last finish",
        *("jobs/s", _POOL, "0.96"),
        lambda stage, size: jobs.cpu(stage, ms=10, seconds=size.seconds),
        least_pairs=10,
    ),
    "cpu100": Benchmark(
        "jobs of 100 ms of pure Python; first start to last finish",
        *("jobs/s", _POOL, "0.99"),
        lambda stage, size: jobs.cpu(stage, ms=100, seconds=size.seconds),
        least_pairs=10,
    ),
    "mixed": Benchmark(
        "jobs in one queue, 90 % of 1 ms and 10 % of 500 ms; first start to last finish",
        *("jobs/s", "the ideal schedule", "0.90"),
        lambda stage, size: mixed.mixed(stage, seconds=size.seconds),
    ),
    "enqueue-many": Benchmark(
        "jobs from a generator, all in one transaction",
        *("jobs/s", "the same bytes as a bare binary COPY", "0.7"),
        lambda stage, size: enqueueing.many(stage, jobs=20 * size.jobs),
    ),
    "pipe": Benchmark(
        "lines through a pipe into `tasuki-mp enqueue --file - --app`, its start included",
        *("jobs/s", "the same rows as a bare binary COPY", "none"),
        lambda stage, size: pipe.pipe(stage, jobs=20 * size.jobs),
    ),
    "enqueue-one": Benchmark(
        "one job in a transaction of its own, on the client's own connection",
        *("µs", "a bare INSERT … RETURNING id", "0.77"),
        lambda stage, _: enqueueing.one(stage),
    ),
    "enqueue-inside": Benchmark(
        "one job inside the caller's transaction",
        *("µs", "a bare INSERT … RETURNING id", "0.77"),
        lambda stage, _: enqueueing.inside(stage),
    ),
    "latency": Benchmark(
        "idle supervisor, jobs one by one: from COMMIT to the first line of the handler, median",
        *("ms", "a bare NOTIFY from one connection to another", "2 ms, 99th percentile 6 ms"),
        lambda stage, _: latency.latency(stage, jobs=300),
    ),
    "throughput-producer": Benchmark(
        "jobs enqueued one by one by 4 producers while 2 supervisors run them",
        *("jobs/s", "the same without notifications", "0.9, no lock waits on NOTIFY"),
        lambda stage, size: producing.throughput_producer(stage, seconds=size.seconds),
    ),
    "backlog": Benchmark(
        "jobs that do nothing, steady, out of many due ones, with as many future ones and as many in the archive",
        *("jobs/s", f"with {backlog.SMALL:,} due", "0.90"),
        lambda stage, size: backlog.backlog(stage, jobs=size.backlog, small=size.jobs),
    ),
    "unknown": Benchmark(
        "jobs that do nothing, steady, behind 1,000,000 due ones of a handler that nobody has",
        *("jobs/s", "without those", "0.90, idle 1 % of a core"),
        lambda stage, size: backlog.unknown(
            stage, jobs=size.jobs, seconds=min(60.0, size.idle / 3), behind=min(backlog.UNKNOWN, 20 * size.jobs)
        ),
        most_pairs=5,
    ),
    "unlimited": Benchmark(
        "jobs that do nothing, steady, in a queue without limits",
        *("jobs/s", "without the triggers and indexes that limits need", "0.98"),
        lambda stage, size: unlimited.unlimited(stage, jobs=size.jobs),
        least_pairs=10,
        is_long=True,
    ),
    "old-transaction": Benchmark(
        "jobs that do nothing, steady, after 300,000 of them under an open transaction with a snapshot",
        *("jobs/s", "before it", "0.95, 99th percentile of leases 1.5 ×"),
        lambda stage, size: transaction.old_transaction(stage, jobs=6 * size.jobs),
        least_pairs=10,
    ),
    "many-supervisors": Benchmark(
        "jobs that do nothing, 8 supervisors with 2 slots each, from the first tenth on",
        *("jobs/s", "1 supervisor with 2 slots", "0.9, no deadlocks"),
        lambda stage, size: crowd.many_supervisors(stage, jobs=2 * size.jobs),
    ),
    "fanout": Benchmark(
        "jobs that sleep for 20 ms, steady, in 64 slots of one supervisor",
        *("jobs/s", "64 slots / 20 ms", "0.90, supervisor 1 core"),
        lambda stage, size: crowd.fanout(stage, seconds=size.seconds),
    ),
    "idle": Benchmark(
        "CPU time of all of the program's processes, 8 slots and nothing to do",
        *("% of a core", "the limit", "1 %, 2 statements a second"),
        lambda stage, size: footprint.idle(stage, seconds=size.idle),
        most_pairs=1,
    ),
    "memory": Benchmark(
        "what a child has for itself alone, median of 8",
        *("MiB", "a child of a bare ProcessPoolExecutor", "8 MiB more, supervisor 80 MB"),
        lambda stage, size: footprint.memory(stage, jobs=size.jobs),
        most_pairs=3,
    ),
    "start": Benchmark(
        "the start of the command to the end of the first job",
        *("s", "the same imports and a forkserver's first child", "0.2 s more, a new child 100 ms"),
        lambda stage, _: starting.start(stage),
    ),
    "payload": Benchmark(
        "jobs that return the 1 MB that they were given, there and back",
        *("MB/s", "bare pipes", "none"),
        lambda stage, _: payloads.payload(stage),
        most_pairs=3,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=[*BENCHMARKS, "all", "full"], help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--procs", type=int, default=2, help="slots, and the pool's processes  [2]")
    parser.add_argument("--pairs", type=int, help="how often ours and the reference alternate  [5, of full 10]")
    parser.add_argument("--seconds", type=float, help="length of one run of a cpu row, and others  [10, of full 30]")
    parser.add_argument(
        "--jobs", type=int, default=50_000, help="of noop; enqueue-many and pipe take twenty times as many  [50000]"
    )
    parser.add_argument(
        "--backlog", type=int, help="due jobs of `backlog`, future ones, finished ones  [500000, of full 5000000]"
    )
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="how long `idle` is watched  [60, of full 600]")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, for scripts.bench.report")
    given = parser.parse_args()
    names = given.names
    if "full" in names:
        names = list(BENCHMARKS)
    elif "all" in names:
        names = [name for name, benchmark in BENCHMARKS.items() if not benchmark.is_long]
    pairs, seconds, waiting, idle = FULL if "full" in given.names else QUICK
    pairs = given.pairs or pairs
    size = Size(given.seconds or seconds, given.jobs, given.backlog or waiting, given.idle or idle)
    rows: list[Row] = []
    missing = False
    try:
        for name in names:
            benchmark = BENCHMARKS[name]
            least = benchmark.least_pairs if names != given.names else 1
            count = max(least, min(pairs, benchmark.most_pairs))
            try:
                row = run(name, procs=given.procs, pairs=count, size=size)
            except venvs.MissingError as error:
                print(f"{name}: not measured: {error}", file=sys.stderr, flush=True)
                missing = True
                continue
            rows.append(row)
            print("\n".join(row.lines()), file=sys.stderr if given.json else sys.stdout, flush=True)
    finally:  # what was measured before a row that fails is not lost
        if given.json:
            result = {
                "machine": host.description(),
                "revision": host.revision(),
                "command": shlex.join(["python", "-m", "scripts.bench", *sys.argv[1:]]),
                "rows": [row.as_json() for row in rows],
            }
            json.dump(result, sys.stdout, indent=1)
            print()
        else:
            print(host.description())
    return 1 if missing else 0


def run(name: str, *, procs: int, pairs: int, size: Size) -> Row:
    """Measure one row on a database of its own."""
    benchmark = BENCHMARKS[name]
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-bench-"))
    try:
        with (
            scratch_server() as server,
            closing(Stage(server.dsn, folder, procs=procs, server_log=server.folder / "server.log")) as stage,
        ):
            measure = benchmark.prepare(stage, size)
            steal = host.Steal()
            measured = [measure() for _ in range(pairs)]
            return Row(
                *(name, benchmark.what, benchmark.unit, benchmark.reference, benchmark.target), measured, steal.share
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
