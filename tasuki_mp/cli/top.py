"""`tasuki-mp top`: a live page of what every host is doing, with keys to cancel a job, see its stack and its output."""

from __future__ import annotations

import os
import select as selecting
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from tasuki_mp.cli import text
from tasuki_mp.cli.database import Database, connected, database_options, open_database
from tasuki_mp.cli.text import Cell, Table
from tasuki_mp.errors import ConfigError, DatabaseError, JobNotRunningError, SchemaError, TasukiError
from tasuki_mp.logs import escape
from tasuki_mp.migrate import check
from tasuki_mp.options import parse_duration
from tasuki_mp.store import commands, look, produce
from tasuki_mp.store.commands import Answered, SlotView
from tasuki_mp.store.look import QueueDepth, RunningJob
from tasuki_mp.store.steps import drive

if TYPE_CHECKING:
    from rich.text import Text

BAR: Final = 10
"""Columns of a progress bar."""
_JOB: Final = 3
"""The column of a slot's job."""
KEYS: Final = "↑↓ choose · c cancel · s stack · l logs · q quit"
_ARROWS: Final = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down", b"k": "up", b"j": "down"}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of one host, and what can be said of its job."""

    host: str
    slot: SlotView | None
    """None for a host that did not answer."""
    cpu_share: float | None = None
    """Of one core, since the page was drawn before."""
    progress: float | None = None
    note: str = ""
    is_canceling: bool = False


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown: the fleet, the queues, and how many attempts end in a second."""

    lines: list[Line]
    queues: list[QueueDepth]
    rate: float | None
    hosts: int
    nobody: str = "nobody works on this database"
    """What there is to say if there are no lines."""


@click.command(short_help="Watch the fleet live.")
@click.option("--every", default="1s", metavar="TIME", help="How often to look.  [1s]")
@click.option("--host", metavar="NAME", help="Only this host.")
@click.option("--once", is_flag=True, help="Print the page once, as text; that is also what a pipe gets.")
@database_options
def top(dsn: str | None, config_file: Path | None, every: str, host: str | None, once: bool) -> None:
    """Watch every slot of every host: its job, progress, CPU and memory, beside the queues' depths.

    Keys: up and down choose a job, c cancels it, s shows its stack, l what it has written, q leaves.
    """
    try:
        interval = max(0.2, parse_duration(every))
    except ValueError as error:
        raise ConfigError(f"--every: {error}") from None
    with open_database(dsn, config_file) as database:
        if once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            _print_once(database, host)
        else:
            _Screen(database, interval, host).run()


def _print_once(database: Database, host: str | None) -> None:
    with connected(database, name="top") as conn:
        check(conn)
        before = drive(conn, commands.overview(), commits=True)
        page = gather(
            conn, {answer.owner: answer for answer in before}, drive(conn, commands.overview(), commits=True), host
        )
    click.echo(f"database {database.description}")
    for table in tables(page, room=None):
        click.echo("\n" + table.plain())


class _Screen:
    """The live page: drawn when something was looked at or a key was pressed."""

    def __init__(self, database: Database, interval: float, host: str | None) -> None:
        self._database = database
        self._interval = interval
        self._host = host
        self._before: dict[str, Answered] = {}
        self._page: Page | None = None
        self._chosen = 0
        self._asked_to_cancel: int | None = None
        self._pane: str | None = None
        self._message = ""

    def run(self) -> None:
        from rich.live import Live

        with _raw_keys(), Live(screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                try:
                    with connected(self._database, name="top") as conn:
                        check(conn)
                        if self._serve(conn, live):
                            return
                except SchemaError:
                    raise
                except DatabaseError as error:
                    # A restart of the database ends no watch: that is when one looks most.
                    self._message = f"{error}; trying again"
                    self._draw(live)
                    if "quit" in _keys(self._interval):
                        return

    def _serve(self, conn: look.Connection, live: Any) -> bool:
        """Look and draw until somebody quits."""
        looked_at = float("-inf")
        while True:
            if monotonic() - looked_at >= self._interval:
                looked_at = monotonic()
                answers = drive(conn, commands.overview(timeout=min(1.0, self._interval)), commits=True)
                self._page = gather(conn, self._before, answers, self._host)
                self._before = {answer.owner: answer for answer in answers if answer.view is not None}
            self._draw(live)
            for key in _keys(max(0.0, looked_at + self._interval - monotonic())):
                if key == "quit" and self._pane is None:
                    return True
                self._pressed(conn, key)

    def _pressed(self, conn: look.Connection, key: str) -> None:
        self._message = ""
        if self._asked_to_cancel is not None:
            job_id, self._asked_to_cancel = self._asked_to_cancel, None
            if key == "y":
                row = conn.execute(produce.CANCEL, produce.cancel_parameters([job_id])).fetchall()
                self._message = f"job {job_id}: {produce.verdicts(row)[job_id]}"
            return
        if self._pane is not None:
            self._pane = None
            return
        jobs = self._jobs()
        match key:
            case "up":
                self._chosen = max(0, self._chosen - 1)
            case "down":
                self._chosen = min(max(0, len(jobs) - 1), self._chosen + 1)
            case "c" | "s" | "l" if not jobs:
                self._message = "no job runs"
            case "c":
                self._asked_to_cancel = self._job()
            case "s" | "l":
                self._pane = _looked_up(conn, key, self._job())
            case _:
                pass

    def _jobs(self) -> list[int]:
        if self._page is None:
            return []
        return [line.slot.job_id for line in self._page.lines if line.slot is not None and line.slot.job_id is not None]

    def _job(self) -> int:
        jobs = self._jobs()
        return jobs[min(self._chosen, len(jobs) - 1)]

    def _draw(self, live: Any) -> None:
        width, height = live.console.size
        live.update(self._screen(width, height), refresh=True)

    def _screen(self, width: int, height: int) -> Text:
        from rich.text import Text

        head = Text(
            f"{self._database.description} · {datetime.now().astimezone():%H:%M:%S}", style="bold", no_wrap=True
        )
        foot = Text(self._foot(), style="reverse", no_wrap=True, overflow="ellipsis")
        if self._pane is not None:
            shown = self._pane.splitlines()[-(height - 3) :]
            body = Text("\n".join(shown), no_wrap=True, overflow="ellipsis")
        elif self._page is None:
            body = Text("looking…")
        else:
            chosen = self._job() if self._jobs() else None
            body = drawn(self._page, width, height - 3, chosen)
        lines = len(body.plain.splitlines())
        gap = Text("\n" * max(1, height - lines - 2))
        return Text.assemble(head, "\n", body, gap, foot)

    def _foot(self) -> str:
        if self._asked_to_cancel is not None:
            return f"cancel job {self._asked_to_cancel}? y cancels it, any other key does not"
        if self._pane is not None:
            return "any key goes back"
        return self._message or KEYS


def _looked_up(conn: look.Connection, key: str, job_id: int) -> str:
    """A job's stack or its output, or why there is none."""
    try:
        if key == "s":
            found = drive(conn, commands.stack(job_id, timeout=5.0), commits=True)
            return escape(f"job {job_id}, pid {found.pid} on {found.host}\n\n{found.text}", limit=None, keep="\n")
        return f"job {job_id}\n\n{_output(conn, job_id)}"
    except TasukiError as error:
        return escape(str(error), limit=None, keep="\n")


def _output(conn: look.Connection, job_id: int) -> str:
    """What a job has written: while it runs from its host, and otherwise what is kept of its last attempt."""
    try:
        written: str | None = drive(conn, commands.tail(job_id, start=0, wait=0.0), commits=True).text
    except JobNotRunningError:
        found = look.job(conn, job_id)
        if found is None:
            return "there is no such job any more"
        written = found[0].output
    return escape(written or "it has written nothing", limit=None, keep="\n")


def gather(conn: look.Connection, before: dict[str, Answered], answers: Sequence[Answered], host: str | None) -> Page:
    """The page from what the supervisors say, what they said before, and what the database says of jobs and queues."""
    with look.snapshot(conn):
        running = {job.id: job for job in look.running_jobs(conn, limit=10_000)}
        queues = look.queue_depths(conn)
    lines: list[Line] = []
    rates: list[float] = []
    for answer in sorted(answers, key=lambda answer: (answer.host, answer.pid)):
        if host is not None and answer.host != host:
            continue
        earlier = before.get(answer.owner)
        if answer.view is None:
            lines.append(Line(host=answer.host, slot=None, note=f"pid {answer.pid} does not answer"))
            continue
        was = None if earlier is None else earlier.view
        if was is not None and answer.view.at > was.at:
            rates.append((answer.view.finished - was.finished) / (answer.view.at - was.at))
        old = {} if was is None else {slot.pid: slot for slot in was.slots}
        for slot in answer.view.slots:
            share = None
            last = old.get(slot.pid)
            if was is not None and last is not None and slot.cpu is not None and last.cpu is not None:
                share = max(0.0, slot.cpu - last.cpu) / max(0.001, answer.view.at - was.at)
            lines.append(_line(answer.host, slot, share, running.get(slot.job_id or 0)))
    page = Page(lines=lines, queues=queues, rate=sum(rates) if rates else None, hosts=len({one.host for one in lines}))
    if host is None or not answers:
        return page
    there = ", ".join(sorted({answer.host for answer in answers}))
    return msgspec.structs.replace(page, nobody=f"nobody works on this database on {host}, but on {there}")


def _line(host: str, slot: SlotView, share: float | None, job: RunningJob | None) -> Line:
    if job is None:
        return Line(host=host, slot=slot, cpu_share=share)
    return Line(
        host=host,
        slot=slot,
        cpu_share=share,
        progress=job.progress,
        note=job.progress_note or "",
        is_canceling=job.is_cancel_requested,
    )


def drawn(page: Page, width: int, height: int, chosen: int | None) -> Text:
    """The page for a window of that size, the chosen job's line marked. Slots that don't fit give way to busy ones."""
    from rich.text import Text

    queues, slots = tables(page, room=height)
    body = slots.rich(width)
    if chosen is not None:
        parts = body.split("\n")
        for part, row in zip(parts[2:], slots.rows, strict=False):  # behind title and headings; perhaps a note follows
            if row[_JOB] == str(chosen):
                part.stylize("reverse")
        body = Text("\n").join(parts)
    return Text("\n\n").join([queues.rich(width), body])


def tables(page: Page, *, room: int | None) -> list[Table]:
    """Queues and slots as tables; in a window of `room` lines, as many as fit."""
    rate = "" if page.rate is None else f"{page.rate:,.1f} attempts end in a second"
    busy = sum(line.slot is not None and line.slot.job_id is not None for line in page.lines)
    most_queues = len(page.queues) if room is None else max(1, min(len(page.queues), room // 3 - 3))
    queues = sorted(page.queues, key=lambda queue: (-(queue.due + queue.running), queue.queue))
    hidden_queues = len(queues) - most_queues
    queue_table = Table(
        columns=[("QUEUE", "left"), *((heading, "right") for heading in ("DUE", "LATER", "HELD", "RUNNING", "OLDEST"))],
        rows=[
            [
                f"{queue.queue} (paused)" if queue.paused_at is not None else queue.queue,
                *map(text.number, (queue.due, queue.scheduled, queue.held, queue.running)),
                text.duration(queue.oldest_due) if queue.due else "-",
            ]
            for queue in queues[:most_queues]
        ],
        note=f"and {hidden_queues} more" if hidden_queues > 0 else "" if queues else "no jobs wait",
    )
    most = len(page.lines) if room is None else max(1, room - most_queues - 6)
    lines = page.lines
    if len(lines) > most:
        lines = sorted(lines, key=lambda line: line.slot is None or line.slot.job_id is None)[:most]
    hidden = len(page.lines) - len(lines)
    hosts = f"{page.hosts} host{'' if page.hosts == 1 else 's'}"
    slot_table = Table(
        title=" · ".join(part for part in (f"{busy} of {len(page.lines)} slots busy on {hosts}", rate) if part),
        columns=[
            ("HOST", "left"),
            ("SLOT", "right"),
            ("PID", "right"),
            ("JOB", "right"),
            ("HANDLER", "left"),
            ("TIME", "right"),
            ("PROGRESS", "left"),
            ("CPU", "right"),
            ("OWN", "right"),
            ("SHARED", "right"),
            ("NOTE", "left"),
        ],
        rows=[_row(line) for line in lines],
        note=f"and {hidden} more slots" if hidden > 0 else "" if page.lines else page.nobody,
        spare=("SHARED", "OWN"),
    )
    return [queue_table, slot_table]


def _row(line: Line) -> list[Cell | str]:
    slot = line.slot
    if slot is None:
        return [line.host, *[""] * 9, Cell(line.note, "red")]
    bar = ""
    if line.progress is not None:
        full = round(line.progress * BAR)
        bar = f"{line.progress:4.0%} " + "█" * full + "░" * (BAR - full)
    note = Cell("canceling", "yellow") if line.is_canceling else Cell(line.note, "dim")
    return [
        line.host,
        str(slot.slot),
        "-" if slot.pid is None else str(slot.pid),
        "" if slot.job_id is None else str(slot.job_id),
        Cell("idle", "dim") if slot.job_id is None else Cell(slot.handler or "", "green"),
        "" if slot.ran_for is None else text.duration(slot.ran_for),
        bar,
        "" if line.cpu_share is None else f"{line.cpu_share:.0%}",
        "" if slot.private is None else text.size(slot.private),
        "" if slot.shared is None else text.size(slot.shared),
        note,
    ]


@contextmanager
def _raw_keys() -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C still interrupts."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _keys(seconds: float) -> list[str]:
    """The keys pressed, waiting for the first of them that long."""
    fd = sys.stdin.fileno()
    readable, _, _ = selecting.select([fd], [], [], seconds)
    if not readable:
        return []
    pressed = os.read(fd, 64)
    if pressed in _ARROWS:
        return [_ARROWS[pressed]]
    if not pressed:
        return ["quit"]
    if pressed in (b"\n", b"\r", b"\x1b"):
        return ["back"]
    return ["quit" if byte == ord("q") else chr(byte) for byte in pressed if 32 <= byte < 127]
