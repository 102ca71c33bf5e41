"""Lines to rows: each line checked, the bad ones refused or put aside, and counted."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from tasuki_mp import payload
from tasuki_mp.cells import Columns
from tasuki_mp.cli.lines import Line, Source, lines
from tasuki_mp.errors import ConfigError, LineError, PayloadError
from tasuki_mp.job import Job, JobRow
from tasuki_mp.payload import FlawError
from tasuki_mp.signature import Plan

_FIELD: Final = re.compile(r"\{([^{}]*)\}")


class Check(msgspec.Struct, frozen=True):
    """What payloads are checked against: the handler's signature, or JSON alone."""

    handler: str
    plan: Plan | None
    limit: int

    def __call__(self, text: bytes) -> dict[str, Any]:
        """The payload as an object. Raises PayloadError."""
        try:
            value = payload.check_text(text, limit=self.limit)
        except FlawError as flaw:
            raise PayloadError(self.handler, flaw.path, flaw.reason) from flaw
        if self.plan is not None:
            self.plan.require(text)
        return value


class UniqueKey(msgspec.Struct, frozen=True):
    """A unique key in which `{name}` stands for a field of the payload."""

    template: str

    def of(self, handler: str, value: dict[str, Any]) -> str:
        """The key of one payload. Raises PayloadError."""

        def text_of(found: re.Match[str]) -> str:
            if found[1] not in value:
                raise PayloadError(handler, f"${payload.step(found[1])}", "missing, and the unique key is made of it")
            field = value[found[1]]
            return field if isinstance(field, str) else msgspec.json.encode(field, order="sorted").decode()

        return _FIELD.sub(text_of, self.template)


class Feed:
    """The rows of a source. What they cost is a few microseconds each, so that the database is the slower one."""

    def __init__(
        self,
        source: Source,
        check: Check,
        template: JobRow,
        *,
        finish: Callable[[Job, dict[str, Any]], Job] | None = None,
        aside: Aside | None = None,
        progress: Callable[[Feed], None] = lambda _: None,
    ) -> None:
        self.source = source
        self.jobs = 0
        self.bad = 0
        self.last_line = 0
        self._check = check
        self._template = template
        self._finish = finish
        self._aside = aside
        self._progress = progress
        self._columns: Columns | None = None

    def rows(self) -> Iterator[JobRow]:
        """Each good line's row. Raises LineError at the first bad one, if they are not put aside."""
        template, finish, check = self._template, self._finish, self._check
        handler, queue, priority = template.handler, template.queue, template.priority
        attempts, at, delay = template.max_attempts, template.scheduled_at, template.delay
        for line in lines(self.source):
            self.last_line = line.number
            if not self.last_line & 0xFFF:
                self._progress(self)
            try:
                text = line.raw if line.cells is None and line.flaw is None else self._payload(line)
                if text is None:
                    continue
                value = check(text)
                row = JobRow(
                    handler=handler,
                    payload=text.decode(),
                    queue=queue,
                    priority=priority,
                    max_attempts=attempts,
                    scheduled_at=at,
                    delay=delay,
                )
                if finish is not None:
                    row = finish(Job(row), value).row
            except PayloadError as error:
                self.bad += 1
                reason = f"{error.path}: {error.reason}" if error.path != "$" else error.reason
                bad = LineError(self.source.name, line.number, reason)
                if self._aside is None:
                    raise bad from error
                self._aside.put(line.raw, bad)
                continue
            self.jobs += 1
            yield row
        self._progress(self)

    def _payload(self, line: Line) -> bytes | None:
        """The JSON of a CSV record; None for the header."""
        handler, plan = self._check.handler, self._check.plan
        if line.flaw is not None or line.cells is None:
            raise PayloadError(handler, "$", line.flaw or "has no cells")
        if self._columns is not None or plan is None:
            return None if self._columns is None else self._columns.payload(line.cells)
        try:
            self._columns = Columns(handler, plan, line.cells, limit=self._check.limit)
        except PayloadError as error:  # under a bad header every line is bad: it is not put aside
            raise LineError(self.source.name, line.number, f"{error.path}: {error.reason}") from error
        if self._aside is not None:
            self._aside.header = line.raw
        return None


class Aside:
    """Where bad lines go: collected beside the file, and in it only when the good ones are in the database."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = b""
        self.count = 0
        self.first: LineError | None = None
        self._file: IO[bytes] | None = None

    def put(self, raw: bytes, error: LineError) -> None:
        """Keep one line. Raises ConfigError."""
        with self._explained():
            if self._file is None:
                # In the same folder: that it can't be written must be known before anything is in the database.
                self._file = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115  closed by close()
            self._file.write(raw + b"\n")
        self.first = self.first or error
        self.count += 1

    def keep(self) -> None:
        """Append what was put to the file, below the CSV header if the file is a new one. Raises ConfigError."""
        if self._file is None or not self._file.tell():
            return
        self._file.seek(0)
        with self._explained(), self.path.open("ab") as target:
            if self.header and not target.tell():
                target.write(self.header + b"\n")
            shutil.copyfileobj(self._file, target)
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Forget what was not kept."""
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"--skip-bad: can't write {self.path}: {error.strerror or error}") from error
