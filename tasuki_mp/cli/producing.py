"""What `tasuki-mp enqueue` does with a database: one job or a file of them in, waited for if that is wished."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Final

import click
import msgspec
import psycopg

from tasuki_mp.cli import progress, text, waiting
from tasuki_mp.cli.database import Database
from tasuki_mp.cli.feed import Aside, Check, Feed, UniqueKey
from tasuki_mp.cli.lines import Format, opened
from tasuki_mp.cli.waiting import Outcome
from tasuki_mp.config import ExitCode
from tasuki_mp.errors import ConfigError, DatabaseError, LineError, PayloadError
from tasuki_mp.job import Job, JobRow, OnConflict
from tasuki_mp.store import batches, bulk, named_lock, produce
from tasuki_mp.store.bulk import Intake
from tasuki_mp.store.copying import Copied, IdRanges
from tasuki_mp.store.look import Connection

_SHOWN: Final = 20
"""Bad lines that a dry run names."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says, each value checked for itself."""

    handler: str
    payload: str | None
    file: str | None
    form: Format | None
    queue: str | None
    priority: int | None
    at: datetime | None
    delay: float
    unique_key: str | None
    on_conflict: OnConflict
    batch: str | None
    chunk: int | None
    skip_bad: Path | None
    is_dry: bool
    is_waiting: bool
    timeout: float | None
    lock: str | None
    is_json: bool
    is_quiet: bool


class Taken(msgspec.Struct, frozen=True):
    """What the database took."""

    ids: IdRanges
    """Of the jobs that are there now, each once."""
    new: int
    stood: int = 0
    """Rows for whose key a job stood already."""

    def __add__(self, other: Taken) -> Taken:
        both = IdRanges((*self.ids.ranges, *other.ids.ranges))
        return Taken(both.distinct(), self.new + other.new, self.stood + other.stood)


def encoded(payload: str | None) -> bytes:
    """The payload's bytes; without one it has no arguments. Raises ConfigError."""
    given = "{}" if payload is None else payload
    require_text(given, "the payload")
    return given.encode()


def require_text(given: str, what: str) -> None:
    """Raises ConfigError for what the shell gave us in another encoding."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} is not valid UTF-8") from None


class Run:
    """One run of the command, on its connection, which holds the lock if there is one."""

    def __init__(self, options: Options, database: Database, conn: Connection) -> None:
        self._options = options
        self._database = database
        self._conn = conn
        self._batch_id: int | None = None

    def all(self, template: JobRow, check: Check) -> int:
        """Enqueue, wait if that is wished, and say what came of it; the exit code."""
        options = self._options
        started = monotonic()
        with ExitStack() as stack:
            aside = stack.enter_context(closing(Aside(options.skip_bad))) if options.skip_bad else None
            taken = (
                self._one(template, check) if options.file is None else self._file(options.file, template, check, aside)
            )
        self._say_enqueued(taken, monotonic() - started)
        outcome = self._wait(taken.ids) if options.is_waiting else None
        self._say_all(taken, outcome, aside)
        return ExitCode.OK if outcome is None else outcome.code

    def _one(self, template: JobRow, check: Check) -> Taken:
        payload = encoded(self._options.payload)
        job = Job(msgspec.structs.replace(template, payload=payload.decode()))
        finish = _finishing(self._options)
        if finish is not None:
            job = finish(job, check(payload))
        query, parameters = produce.enqueueing(job, is_told=True)
        try:
            row = self._conn.execute(query, parameters).fetchone()
        except psycopg.DataError as error:
            # What JSON allows and jsonb does not.
            raise PayloadError(template.handler, "$", str(error).partition("\n")[0]) from error
        job_id, is_new = produce.standing(row) if job.row.unique else (produce.job_id(row), True)
        return Taken(IdRanges([range(job_id, job_id + 1)]), int(is_new), int(not is_new))

    def _file(self, path: str, template: JobRow, check: Check, aside: Aside | None) -> Taken:
        options = self._options
        taken = Taken(IdRanges(), 0)
        with opened(path, options.form) as source, progress.bar("enqueueing") as report, self._sealing():
            finish = _finishing(options)
            feed = Feed(source, check, template, finish=finish, aside=aside, progress=_reporting(report))
            rows = feed.rows()
            is_open = True
            while is_open:
                begun = feed.last_line
                try:
                    intake = Intake(rows if options.chunk is None else islice(rows, options.chunk))
                    is_open = bool(intake) and options.chunk is not None
                    taken += self._insert(intake, is_last=not is_open)
                except LineError as error:
                    raise LineError(error.source, error.line, f"{error.reason}; {_kept(taken, begun)}") from error
                if aside is not None:
                    aside.keep()
        return taken

    def _insert(self, intake: Intake, *, is_last: bool) -> Taken:
        """One transaction. If the jobs are to be a batch, the first one begins it and the last one ends it."""
        if self._options.batch is None:
            return _taken(bulk.insert(self._conn, intake, is_ours=True)) if intake else Taken(IdRanges(), 0)
        with bulk.transaction(self._conn), bulk.explained():
            if self._batch_id is None and intake:
                named = {"name": self._options.batch, "state": "{}"}
                nothing = dict.fromkeys(("on_complete", "on_success", "on_failure"))
                self._batch_id = batches.batch_id(self._conn.execute(batches.CREATE, {**named, **nothing}).fetchone())
            taken = Taken(IdRanges(), 0)
            if intake:
                taken = _taken(bulk.insert(self._conn, intake, is_ours=True, batch_id=self._batch_id))
            self._conn.execute(batches.SEAL, batches.sealing(self._batch_id, taken.new, is_sealed=is_last))
        return taken

    @contextmanager
    def _sealing(self) -> Iterator[None]:
        """Whatever ends it, the batch has what was committed, and no more."""
        try:
            yield
        except BaseException:
            if self._batch_id is not None:
                try:
                    with bulk.explained():
                        self._conn.execute(batches.SEAL, batches.sealing(self._batch_id, 0, is_sealed=True))
                except DatabaseError as error:
                    click.echo(
                        f"tasuki-mp: batch {self._batch_id} may be left open, `tasuki-mp batch cancel` ends it: {error}",
                        err=True,
                    )
            raise

    def _wait(self, ids: IdRanges) -> Outcome:
        def renew(conn: Connection) -> None:
            if self._options.lock is not None:
                named_lock.take(conn, self._options.lock)

        return waiting.wait(self._conn, self._database, ids, timeout=self._options.timeout, renew=renew)

    def _say_enqueued(self, taken: Taken, seconds: float) -> None:
        options = self._options
        if options.is_json or options.is_quiet:
            return
        if options.file is None:
            click.echo(str(taken.ids[0]))
        elif sys.stderr.isatty():
            rate = f", {text.number(round(taken.new / seconds))} a second" if taken.new > 999 else ""
            batch = "" if self._batch_id is None else f"batch {self._batch_id}: "
            stood = f", {text.number(taken.stood)} stood already" if taken.stood else ""
            click.echo(f"{batch}{_jobs(taken.new)} enqueued in {text.duration(seconds)}{rate}{stood}", err=True)

    def _say_all(self, taken: Taken, outcome: Outcome | None, aside: Aside | None) -> None:
        options = self._options
        if options.is_json:
            said: dict[str, Any] = _summary(taken, aside)
            if options.file is None:
                said = {"id": taken.ids[0], "is_new": not taken.stood}
            if self._batch_id is not None:
                said["batch"] = self._batch_id
            click.echo(text.json_line({**said, **(outcome.counts if outcome else {})}))
        troubles = []
        if aside is not None and aside.first is not None:
            troubles.append(f"{_count(aside.count, 'bad line')} in {aside.path}; the first: {aside.first}")
        if outcome is not None and (words := outcome.words(options.timeout)):
            troubles.append(words)
        if troubles:
            click.echo(f"tasuki-mp: {text.one_line('; '.join(troubles))}", err=True)


def dry_run(options: Options, template: JobRow, check: Check) -> int:
    """Check all, say what was found, and enqueue nothing; the exit code."""
    if options.file is None:
        return _checked(options, 1, 0)
    shown = Shown()
    with opened(options.file, options.form) as source, progress.bar("checking") as report:
        feed = Feed(source, check, template, finish=_finishing(options), aside=shown, progress=_reporting(report))
        for _ in feed.rows():
            pass
    for error in shown.errors:
        click.echo(f"tasuki-mp: {text.one_line(str(error))}", err=True)
    if shown.count > len(shown.errors):
        click.echo(f"tasuki-mp: and {text.number(shown.count - len(shown.errors))} more", err=True)
    return _checked(options, feed.jobs, feed.bad)


def _checked(options: Options, jobs: int, bad: int) -> int:
    if options.is_json:
        click.echo(text.json_line({"jobs": jobs, "bad": bad}))
    elif not options.is_quiet:
        click.echo(f"{_jobs(jobs)} could be enqueued" + (f", {_count(bad, 'bad line')}" if bad else ""))
    return ExitCode.USAGE if bad else ExitCode.OK


class Shown(Aside):
    """The bad lines of a dry run: counted, the first of them kept for the screen, and none written anywhere."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.errors: list[LineError] = []

    def put(self, raw: bytes, error: LineError) -> None:  # noqa: ARG002  the line itself is not shown
        """Count it."""
        self.count += 1
        if len(self.errors) < _SHOWN:
            self.errors.append(error)


def _finishing(options: Options) -> Callable[[Job, dict[str, Any]], Job] | None:
    """What is done to each job beyond the template, by its payload."""
    if options.unique_key is None:
        return None
    key = UniqueKey(options.unique_key)

    def finish(job: Job, value: dict[str, Any]) -> Job:
        try:
            return job.unique(key.of(options.handler, value), on_conflict=options.on_conflict)
        except ValueError as error:
            raise PayloadError(options.handler, "$", f"its unique key: {error}") from error

    return finish


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _summary(taken: Taken, aside: Aside | None) -> dict[str, Any]:
    ranges = [[each.start, each.stop - 1] for each in taken.ids.ranges]
    return {"jobs": taken.new, "stood": taken.stood, "ids": ranges, "bad": 0 if aside is None else aside.count}


def _taken(copied: Copied) -> Taken:
    return Taken(copied.ids.distinct(), copied.new, copied.stood)


def _kept(taken: Taken, last_line: int) -> str:
    """What is in the database in spite of a bad line."""
    if not taken.ids:
        return "nothing was enqueued"
    return f"{_jobs(taken.new)} enqueued from the lines up to {last_line}, and none of the others"


def _reporting(report: progress.Report) -> Callable[[Feed], None]:
    def say(feed: Feed) -> None:
        report(feed.source.position(), feed.source.size, f"{text.number(feed.jobs)} jobs")

    return say


def _jobs(count: int) -> str:
    return _count(count, "job")


def _count(count: int, what: str) -> str:
    return f"{text.number(count)} {what}{'' if count == 1 else 's'}"
