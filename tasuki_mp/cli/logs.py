"""`tasuki-mp logs`: what a job has written, on whichever host it runs."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Final

import click
import psycopg

from tasuki_mp import migrate
from tasuki_mp.cli.database import connected, database_options, open_database, say_which
from tasuki_mp.cli.selection import ID
from tasuki_mp.cli.show import JobUnknownError
from tasuki_mp.errors import CommandError, DatabaseError, JobNotRunningError, NoAnswerError, SchemaError
from tasuki_mp.logs import escape
from tasuki_mp.store import commands, look
from tasuki_mp.store.look import JobInfo
from tasuki_mp.store.steps import drive

WAIT: Final = 5.0
"""Seconds that a supervisor may wait for more before it answers."""
TIMEOUT: Final = 5.0
"""Seconds beyond that until a supervisor counts as silent."""
AGAIN: Final = 0.3
"""Seconds until the next look at a job that does not run."""
_LEFT_OUT: Final = re.compile(r"\[(\d+) bytes of output left out\]\n")

Connection = psycopg.Connection[tuple[Any, ...]]


@click.command(short_help="Show what a job has written.")
@click.argument("job_id", metavar="ID", type=ID)
@click.option(
    "-f", "--follow", "is_following", is_flag=True, help="Go on until the job has ended, through all attempts."
)
@click.option("--raw", "is_raw", is_flag=True, help="Write control characters as they are.")
@database_options
def logs(dsn: str | None, config_file: Path | None, job_id: int, is_following: bool, is_raw: bool) -> None:
    """Show what a job and its subprocesses have written to standard output and standard error, attempt by attempt.

    Of each attempt the last 64 KiB are kept. What a running job has written comes from the host that runs it.
    """
    with open_database(dsn, config_file) as database:
        say_which(database)
        follower = Follower(job_id, is_following=is_following, is_raw=is_raw)
        while True:
            try:
                with connected(database, name="logs") as conn:
                    migrate.check(conn)
                    while not follower.look(conn):
                        pass
                    return
            except SchemaError:
                raise
            except DatabaseError as error:
                if not is_following:
                    raise
                follower.say(str(error))
                threading.Event().wait(2)


class Follower:
    """Prints what there is to print of one job, each piece once."""

    def __init__(self, job_id: int, *, is_following: bool, is_raw: bool) -> None:
        self._job_id = job_id
        self._is_following = is_following
        self._is_raw = is_raw
        self._done = 0
        """The last lease whose attempt is over and shown."""
        self._live = 0
        """The lease that was shown while it ran, up to byte `_at`, which is byte `_shown` of its text."""
        self._at = 0
        self._shown = 0
        self._said = ""

    def look(self, conn: Connection) -> bool:
        """Print what is new; whether that was all."""
        found = look.job(conn, self._job_id)
        if found is None:
            raise JobUnknownError(f"there is no job {self._job_id} (any more)")
        job, attempts = found
        has_several = job.lease_no > 1
        for attempt in attempts:
            if attempt.lease_no > self._done:
                self._stored(attempt.lease_no, _heading(attempt.lease_no, attempt.attempt, has_several), attempt.output)
        if job.finished_at is not None:
            if job.lease_no > self._done:
                self._stored(job.lease_no, _heading(job.lease_no, job.attempt, has_several), job.output)
            return True
        if job.state == "running":
            return self._running(conn, job, _heading(job.lease_no, job.attempt, has_several))
        if self._is_following:
            self.say(f"job {job.id} is {job.state}")
            threading.Event().wait(AGAIN)
        return not self._is_following

    def say(self, words: str) -> None:
        """Tell a person about the job, beside its output; nothing twice in a row."""
        if words != self._said:
            click.echo(f"── {escape(words)} ──", err=True)
            self._said = words

    def _running(self, conn: Connection, job: JobInfo, heading: str) -> bool:
        if self._live != job.lease_no:
            self._live, self._at, self._shown = job.lease_no, 0, 0
        wait = WAIT if self._is_following else 0.0
        try:
            tail = drive(conn, commands.tail(job.id, start=self._at, wait=wait, timeout=TIMEOUT), commits=True)
        except (JobNotRunningError, CommandError, NoAnswerError) as error:
            if not self._is_following:
                if isinstance(error, JobNotRunningError):
                    return False  # it has just ended: what it wrote is in the tables
                raise
            if isinstance(error, NoAnswerError):
                self.say(str(error))
            threading.Event().wait(AGAIN)
            return False
        if tail.lease_no != self._live:
            return False
        skipped = tail.start - self._at
        if tail.text:
            self._print(heading, (f"[{skipped} bytes of output left out]\n" if skipped > 0 else "") + tail.text)
        self._shown += skipped + len(tail.text.encode())
        self._at = tail.end
        return not self._is_following

    def _stored(self, lease_no: int, heading: str, output: str | None) -> None:
        """Print the stored output of an attempt, but for what was shown while it ran."""
        self._done = lease_no
        rest = (output or "").encode()
        if self._live == lease_no and self._shown:
            left_out = _LEFT_OUT.match(output or "")
            # What is stored begins so many bytes after the beginning; where bytes were no text, it is near enough.
            begin, skipped = (int(left_out[1]), left_out.end()) if left_out else (0, 0)
            if self._shown >= begin:
                rest = rest[skipped + self._shown - begin :]
        self._print(heading, rest.decode("utf-8", "ignore"))

    def _print(self, heading: str, text: str) -> None:
        if not text:
            return
        if heading:
            self.say(heading)
        if self._is_raw:
            click.echo(text, nl=False, color=True)  # or click takes colours out where no terminal reads
        else:
            click.echo(escape(text.replace("\r\n", "\n"), limit=None, keep="\n\t"), nl=False)


def _heading(lease_no: int, attempt: int, has_several: bool) -> str:
    return f"run {lease_no}, attempt {attempt}" if has_several else ""
