"""`python -m scripts.bench.profile [--ms MS]`: what one job costs, and where; prints markdown.

Twice the same: jobs enqueued in one transaction beside a running supervisor, from its commit to the last finish. The first
pass only counts: CPU time of each part, WAL, transactions, row versions. The second has py-spy at the supervisor and one
child, and the server log the duration of each statement; its own figures would be disturbed by that.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts.bench import app, venvs
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.runner import Runner
from scripts.harness.server import Server, scratch_server
from scripts.harness.waiting import wait
from tasuki_mp.job import Job

PY_SPY: Final = ("py-spy==0.4.3",)
RATE: Final = 500
"""Samples a second of each watched process."""
ROWS: Final = 20
WARM_UP: Final = 2_000
LOGGING: Final = {"log_min_duration_statement": "0", "log_parameter_max_length": "0"}
_DURATION: Final = re.compile(r"duration: ([\d.]+) ms  (?:parse|bind|execute|statement)[^:]*: *(.*)")
_ROUTE: Final = re.compile(r"^.*?(scripts|tasuki_mp|site-packages|python3\.\d+)/")


@dataclass(frozen=True)
class Counts:
    """What has been used so far; CPU in seconds."""

    supervisor: float
    children: float
    forkserver: float
    postgres: float
    wal: int
    transactions: int
    backends: Mapping[str, float]
    """CPU seconds of the server's processes that still live, by what they are for."""

    def since(self, before: Counts) -> Counts:
        numbers = [name for name in self.__dataclass_fields__ if name != "backends"]
        backends = {name: took - before.backends.get(name, 0.0) for name, took in self.backends.items()}
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in numbers}, backends=backends)


@dataclass(frozen=True)
class Rows:
    """What became of the live table's row versions."""

    updated: int
    hot: int
    deleted: int


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.profile", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--ms", type=float, default=0.0, help="milliseconds of pure Python in each job  [0]")
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--counts", action="store_true", help="only the first pass: what is used, not where")
    given = parser.parse_args()
    job = app.burn.job(steps=app.steps_for(given.ms / 1000)) if given.ms else app.noop.job()
    print(f"{host.description()}, {given.procs} slots, {given.jobs:,} jobs of {given.ms:g} ms\n")
    print("\n".join(_counted(job, given.jobs, given.procs)), flush=True)
    if not given.counts:
        try:
            print("\n".join(_looked_into(job, given.jobs, given.procs)))
        except venvs.MissingError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _counted(job: Job, jobs: int, procs: int) -> Iterator[str]:
    with _stage(procs, {}) as (server, stage), _supervised(stage) as runner:
        with stage.conn.transaction():
            ids = app.app.enqueue_many(itertools.repeat(job, jobs), stage.conn)
            before, began = _counts(server, stage, runner), host.now()
        _wait_for(stage, ids)
        seconds, used = host.now() - began, _counts(server, stage, runner).since(before)
        runner.signal(signal.SIGTERM)  # statistics are exact once the connections that made them are closed
        runner.wait(60)
        rows = _versions(stage.conn)
    run = jobs + WARM_UP
    each = {
        "supervisor": used.supervisor,
        "children": used.children,
        "forkserver": used.forkserver,
        "Postgres, all its processes": used.postgres,
    }
    total = sum(each.values())
    yield f"| for each job | {jobs / seconds:,.0f} jobs/s |\n| --- | --- |"
    for name, value in each.items():
        yield f"| CPU time, {name} | {value / jobs * 1e6:.1f} µs |"
    yield f"| CPU time, together | {total / jobs * 1e6:.1f} µs |"
    for name, value in sorted(used.backends.items(), key=lambda item: -item[1])[:4]:
        yield f"| of Postgres's: {name} | {value / jobs * 1e6:.1f} µs |"
    yield f"| WAL | {used.wal / jobs:,.0f} bytes |"
    yield f"| transactions that write | {used.transactions / jobs:.4f} |"
    yield f"| dead row versions in the live table | {(rows.updated + rows.deleted) / run:.2f} |"
    yield f"| of these by updates, and by HOT ones | {rows.updated / run:.2f}, {rows.hot / run:.2f} |"
    yield ""


def _looked_into(job: Job, jobs: int, procs: int) -> Iterator[str]:
    py_spy = venvs.environment("py-spy", PY_SPY) / "py-spy"
    with _stage(procs, LOGGING) as (_, stage):
        log = stage.server_log
        with _supervised(stage) as runner:
            pids = {"supervisor": runner.pid, "child": host.slots_of(runner.pid)[0]}
            with stage.conn.transaction():
                ids = app.app.enqueue_many(itertools.repeat(job, jobs), stage.conn)
                begin = log.stat().st_size
                watched = {name: _watch(py_spy, pid, stage.folder / name) for name, pid in pids.items()}
            _wait_for(stage, ids)
            for process in watched.values():
                process.send_signal(signal.SIGINT)
                process.wait(60)
            statements = _statements(log, begin)
        for name in pids:
            yield from _functions(name, (stage.folder / name).read_text(encoding="utf-8"))
    yield "| statement | times | ms each | µs for each job |\n| --- | --- | --- | --- |"
    for text, (times, took) in sorted(statements.items(), key=lambda item: -item[1][1])[:10]:
        yield f"| {text} | {times:,} | {took / times:.2f} | {took / jobs * 1e3:.1f} |"


@contextmanager
def _stage(procs: int, settings: Mapping[str, str]) -> Iterator[tuple[Server, Stage]]:
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-bench-"))
    try:
        with scratch_server(settings) as server:
            log = server.folder / "server.log"
            with closing(Stage(server.dsn, folder, procs=procs, server_log=log)) as stage:
                yield server, stage
    finally:
        shutil.rmtree(folder)


@contextmanager
def _supervised(stage: Stage) -> Iterator[Runner]:
    """A supervisor that has run some jobs in each child."""
    stage.clear()
    runner = stage.supervisor()
    try:
        _wait_for(stage, app.app.enqueue_many(itertools.repeat(app.noop.job(), WARM_UP), stage.conn))
        stage.clear()
        yield runner
    finally:
        runner.close()


def _wait_for(stage: Stage, ids: Sequence[int]) -> None:
    """Looks at single entries of the primary key: it must cost nothing."""
    last = max(ids)

    def is_over() -> bool:
        asked = stage.conn.execute("SELECT FROM tasuki.job WHERE id = %s", (last,), prepare=True)
        return asked.fetchone() is None and stage.conn.execute("SELECT FROM tasuki.job LIMIT 1").fetchone() is None

    if not wait(is_over, 600, every=0.02):
        raise RuntimeError(f"jobs are left; see {stage.folder}")


def _counts(server: Server, stage: Stage, runner: Runner) -> Counts:
    row = stage.conn.execute(
        "SELECT pg_current_wal_insert_lsn() - '0/0', pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    ).fetchone()
    assert row is not None
    backends: dict[str, float] = defaultdict(float)
    for pid, name in stage.conn.execute(
        "SELECT pid, coalesce(nullif(application_name, ''), backend_type) FROM pg_stat_activity"
    ):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            backends[name] += _own_seconds(pid)
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    forkserver = host.forkserver_of(runner.pid)
    assert forkserver is not None
    return Counts(
        supervisor=_own_seconds(runner.pid),
        children=sum(_own_seconds(pid) for pid in host.slots_of(runner.pid)),
        forkserver=_own_seconds(forkserver),
        # What ended meanwhile (a parallel worker, autovacuum) is in the postmaster's own account.
        postgres=host.cpu_seconds(postmaster) + sum(_own_seconds(each.pid) for each in host.children_of(postmaster)),
        wal=int(row[0]),
        transactions=int(row[1]),
        backends=backends,
    )


def _own_seconds(pid: int) -> float:
    """CPU time of that process alone, to the nanosecond."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def _versions(conn: psycopg.Connection[tuple[Any, ...]]) -> Rows:
    row = conn.execute(
        "SELECT n_tup_upd, n_tup_hot_upd, n_tup_del FROM pg_stat_user_tables WHERE relid = 'tasuki.job'::regclass"
    ).fetchone()
    assert row is not None
    return Rows(*row)


def _watch(py_spy: Path, pid: int, file: Path) -> subprocess.Popen[str]:
    """py-spy at that process until it is interrupted; it has begun when this returns."""
    command = [py_spy, "record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw", "--output", file]
    process = subprocess.Popen(
        [*command, "--duration", "600", "--nonblocking"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    if process.poll() is not None:
        raise venvs.MissingError(f"py-spy can't look into process {pid}: {first.strip()}")
    return process


def _functions(name: str, raw: str) -> Iterator[str]:
    """Who was on top of the stack, and who was anywhere in it."""
    own: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            anywhere[frame] += int(count)
    samples = own.total()
    yield f"| {name}: function ({samples:,} samples) | itself | with what it calls |\n| --- | --- | --- |"
    for frame, count in own.most_common(ROWS):
        yield f"| `{frame}` | {count / samples:.1%} | {anywhere[frame] / samples:.1%} |"
    yield ""


def _short(frame: str) -> str:
    """`function (path:line)` as `function path`, the path from the package on."""
    function, _, place = frame.rpartition(" (")
    path = place.rpartition(":")[0] or place.rstrip(")")
    return f"{function} {_ROUTE.sub(lambda found: '' if 'packages' in found[1] else found[1] + '/', path)}".strip()


def _statements(log: Path, begin: int) -> dict[str, tuple[int, float]]:
    """What the server says of its statements: how often, milliseconds with binding the parameters."""
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    with log.open("rb") as file:
        file.seek(begin)
        for line in file.read().decode(errors="replace").splitlines():
            if (match := _DURATION.search(line)) is not None:
                entry = found[match[2].removeprefix("-- ")[:90] or "(no text)"]
                entry[0] += "  execute " in line or "  statement: " in line
                entry[1] += float(match[1])
    return {text: (int(times) or 1, took) for text, (times, took) in found.items()}


if __name__ == "__main__":
    sys.exit(main())
