"""`tasuki-mp demo`: enqueue, run by a real supervisor, show, and compare with one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console

from tasuki_mp import migrate
from tasuki_mp.cli import INTERRUPTED
from tasuki_mp.cli.database import Database, connected, open_database
from tasuki_mp.config import EMBEDDED, ExitCode
from tasuki_mp.cores import usable_cores
from tasuki_mp.demo import batch, show, summary
from tasuki_mp.demo.alone import Alone
from tasuki_mp.demo.app import QUEUE
from tasuki_mp.demo.batch import Connection
from tasuki_mp.demo.follow import Signals, follow
from tasuki_mp.demo.sources import find_sources, stdlib_folder, warm_up
from tasuki_mp.errors import ConfigError
from tasuki_mp.options import MAX_PROCS, PARSERS

_APP: Final = "tasuki_mp.demo.app:app"
_decode_alone = msgspec.json.Decoder(Alone).decode


class Run(msgspec.Struct, frozen=True):
    """What this run of the demo works on: batches of jobs, and since when."""

    batches: list[datetime]
    total: int
    done_before: int
    since: datetime
    """By the database's clock, before the supervisor was started: what finished earlier was not this run's work."""


@click.command
@click.option("--procs", type=click.IntRange(1, MAX_PROCS), help="Child processes.  [as many as cores may be used]")
@click.option("--dsn", metavar="DSN", default=EMBEDDED, help="The database.  [embedded: a PostgreSQL of its own]")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Analyse the Python files in it.  [the standard library]",
)
@click.option("--fresh", is_flag=True, help="Cancel what an interrupted demo has left, instead of going on with it.")
def demo(procs: int | None, dsn: str, folder: Path | None, fresh: bool) -> int:
    """Analyse Python's standard library with all cores.

    One job per source file: the cyclomatic complexity of every function, lines and tokens. Ctrl-C interrupts it, and
    the next demo goes on where it stopped. At the end the same work is done once more by one process alone, and the
    last line says how much faster the jobs were.
    """
    procs = procs or usable_cores()
    to = show.console()
    with open_database(dsn, None) as database:
        show.say(to, f"database: {database.description}")
        with connected(database, name="demo") as conn:
            migrate.migrate(conn)
            run = prepare(conn, to, folder=folder, is_fresh=fresh)
            code = run_jobs(conn, to, run, dsn=dsn, database=database, procs=procs)
            if code != ExitCode.OK:
                return code
            jobs = batch.finished(conn, run.batches, since=min(run.batches))
    mine = [job for job in jobs if job.finished_at >= run.since]
    show.show_found(to, summary.found(jobs), show.common_root(job.path for job in jobs))
    pace = summary.pace(mine)
    if pace is None:
        show.say(to, "nothing was left to run: another supervisor did it")
        return ExitCode.OK
    show.show_pace(to, pace, procs=procs)
    return compare(to, pace, [job.path for job in mine])


def prepare(conn: Connection, to: Console, *, folder: Path | None, is_fresh: bool) -> Run:
    """The jobs to run: those that an earlier demo has left, or else one new job for each file."""
    left = batch.left(conn)
    if left and is_fresh:
        canceled = batch.cancel_all(conn)
        show.say(to, f"canceled {canceled} jobs of an earlier demo")
    elif left:
        batches = [item.created_at for item in left]
        unfinished = sum(item.unfinished for item in left)
        done = len(batch.finished(conn, batches, since=min(batches)))
        show.say(to, f"going on with an interrupted demo: {done} of {done + unfinished} files are done (--fresh: anew)")
        return Run(batches, done + unfinished, done, batch.now(conn))
    where = (folder or stdlib_folder()).resolve()
    paths = find_sources(where)
    if not paths:
        raise ConfigError(f"{where} holds no Python source; give another --folder")
    warm_up(paths)
    created_at = batch.enqueue(conn, paths)
    show.say(to, f"enqueued {len(paths)} files of {where}, one job each")
    return Run([created_at], len(paths), 0, batch.now(conn))


def run_jobs(conn: Connection, to: Console, run: Run, *, dsn: str, database: Database, procs: int) -> int:
    """Run the jobs by a supervisor of their own until none is left; OK, or the exit code to leave with."""
    arguments = ["--app", _APP, "--queue", QUEUE, "--procs", str(procs), "--drain"]
    arguments += ["--log-level", "warning", "--log-format", "json"]
    # What the user configured for a supervisor of his own is not for this one. An embedded database is named by that
    # word, so that the supervisor keeps it running by itself; a dsn may hold a password, which `ps` would show.
    own = {f"TASUKI_{option.replace('-', '_').upper()}" for option in PARSERS}
    environ = {name: value for name, value in os.environ.items() if name not in own}
    environ["TASUKI_DSN"] = EMBEDDED if dsn == EMBEDDED else database.dsn

    def on_line(line: str) -> None:
        words = show.log_line(line)
        if words is not None:
            show.say(to, words)

    def on_signal(count: int) -> None:
        words = {1: "stopping: running jobs may finish; Ctrl-C again stops them", 2: "stopping at once"}
        show.say(to, words.get(count, "leaving"))

    with Signals() as signals:
        with show.progress(to, "files", run.total, done=run.done_before) as advance:
            code = follow(
                [sys.executable, "-m", "tasuki_mp", "run", *arguments],
                signals=signals,
                environ=environ,
                on_line=on_line,
                on_tick=lambda: advance(run.total - unfinished(conn, run)),
                on_signal=on_signal,
            )
            advance(run.total - unfinished(conn, run))
        if signals.received:
            waiting = unfinished(conn, run)
            if waiting:
                show.say(to, f"interrupted: {waiting} of {run.total} files are left; the next demo goes on with them")
            return INTERRUPTED
    if code != ExitCode.OK:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        show.say(to, f"the supervisor {how}; the next demo goes on with what is left")
    return code if code >= 0 else ExitCode.FAILED


def unfinished(conn: Connection, run: Run) -> int:
    """How many jobs of this run are not done."""
    return sum(left.unfinished for left in batch.left(conn) if left.created_at in run.batches)


def compare(to: Console, pace: summary.Pace, paths: Sequence[str]) -> int:
    """Do the same work in one process, nothing else running, and say how much faster the jobs were."""
    took: Alone | None = None
    lines: list[str] = []
    with Signals() as signals, show.progress(to, "the same in one process", len(paths)) as advance:

        def on_line(line: str) -> None:
            nonlocal took
            if line.isdecimal():
                advance(int(line))
            elif line.startswith("{"):
                took = _decode_alone(line)
                advance(len(paths))
            else:
                lines.append(line)

        code = follow(
            [sys.executable, "-m", "tasuki_mp.demo.alone"],
            signals=signals,
            stdin=b"".join(os.fsencode(path) + b"\0" for path in paths),
            on_line=on_line,
        )
    if signals.received:
        show.say(to, "speed-up not measured: interrupted")
        return INTERRUPTED
    if took is None or code != 0:
        for line in lines:
            show.say(to, line)
        show.say(to, f"speed-up not measured: the single process ended with status {code}")
        return ExitCode.FAILED
    show.say(to, f"seconds in one process: {took.seconds:.2f}")
    if pace.supervisors > 1:
        show.say(to, "speed-up not measured: other supervisors took part in the work")
        return ExitCode.OK
    show.say(to, f"speed-up: {took.seconds / pace.seconds:.2f}")
    return ExitCode.OK
