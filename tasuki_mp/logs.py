"""The supervisor's log: one line per event, for people or as JSON, with every control character escaped.

Standard-library logging with two formatters. Lines are written by a thread of their own through a bounded buffer, so
that a log pipe nobody reads can stop neither the loop nor the heartbeat. Payloads are never logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

log: Final = logging.getLogger("tasuki_mp")

FIELD_LIMIT: Final = 4_000
"""Characters of one field's value; what is longer is cut and says so."""
LINES_LIMIT: Final = 10_000
"""Lines that may wait for a slow reader; further ones are dropped and counted."""

# C0 and C1 (terminal commands, and newlines that would forge a line), line separators, lone surrogates, and the
# characters that turn the direction of writing around.
UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[^\s\"'=\\]+")
_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


def event(level: int, message: str, /, **fields: object) -> None:
    """Log that something happened: fixed words, and the facts as fields (`job=12, handler="thumbnail"`)."""
    if log.isEnabledFor(level):
        log.log(level, message, extra={"fields": fields}, stacklevel=2)


def escape(text: str, *, limit: int | None = FIELD_LIMIT, keep: str = "") -> str:
    """The text on one line, safe for a terminal; `keep` are unsafe characters to let through, such as a newline."""
    cut = text if limit is None or len(text) <= limit else text[:limit]
    safe = UNSAFE.sub(lambda found: found[0] if found[0] in keep else _code(found[0]), cut)
    return safe if len(cut) == len(text) else f"{safe}… ({len(text)} characters)"


def _code(character: str) -> str:
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def _facts(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """The record's fields without empty ones, and the traceback of an exception as one more."""
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        yield from ((str(name), value) for name, value in fields.items() if value is not None)
    if record.exc_info and record.exc_info[0] is not None:
        yield "traceback", "".join(traceback.format_exception(*record.exc_info)).rstrip()


class TextFormatter(logging.Formatter):
    """`2026-05-01 12:00:00.123 WARNING job failed  job=12 handler=thumbnail error="ValueError: bad width"`."""

    def __init__(self, *, is_coloured: bool = False) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        level = f"{record.levelname:<7}"
        if self._is_coloured:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        facts = " ".join(f"{escape(name)}={_shown(value)}" for name, value in _facts(record))
        return f"{when} {level} {escape(record.getMessage())}{'  ' if facts else ''}{facts}"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = escape(str(value))
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `event`, and the fields of the text form under the same names."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": escape(record.getMessage(), limit=FIELD_LIMIT),
        }
        if record.name != log.name:
            content["logger"] = record.name
        for name, value in _facts(record):
            content.setdefault(name, _plain(value))
        # ASCII only: that escapes C1, separators and lone surrogates too, in JSON's own way; only DEL is left.
        return json.dumps(content, ensure_ascii=True, allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: object) -> object:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and infinities are no JSON
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    text = str(value)
    return text if len(text) <= FIELD_LIMIT else f"{text[:FIELD_LIMIT]}… ({len(text)} characters)"


class LineWriter:
    """Writes lines to a stream from a thread of its own, and never makes the caller wait.

    A reader that is too slow loses lines, and is told how many; a reader that is gone loses the rest silently.
    """

    def __init__(self, stream: TextIO, *, limit: int = LINES_LIMIT) -> None:
        self._stream = stream
        self._limit = limit
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._is_writing = False
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tasuki-mp log", daemon=True)
            self._thread.start()

    def write(self, line: str) -> None:
        """Hand over one line, without its newline."""
        with self._changed:
            if len(self._lines) >= self._limit:
                self._dropped += 1
                return
            self._lines.append(line)
            self._changed.notify_all()

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until all lines are written; False if that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None or self._is_idle(), timeout)

    def stop(self, timeout: float = 1.0) -> None:
        """Write what is left, for at most `timeout` seconds, and end the thread."""
        self.flush(timeout)
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    def _is_idle(self) -> bool:
        return not self._lines and not self._dropped and not self._is_writing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_stopping or self._lines or self._dropped)
                if self._is_stopping:
                    return
                lines, dropped = list(self._lines), self._dropped
                self._lines.clear()
                self._dropped = 0
                self._is_writing = True
            if dropped:
                lines.append(f"({dropped} lines dropped: nobody read them fast enough)")
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # the reader is gone or the stream is closed: there is nobody left to tell
                continue


class _WriterHandler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # a value whose __str__ raises must not take the supervisor down
            line = f"{record.levelname} {escape(str(record.msg))} (could not be formatted)"
        self._writer.write(line)


def set_up(
    *, level: str = "info", log_format: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> LineWriter:
    """Send the log to `stream` (standard error), ours from `level` up, other libraries' from warning up.

    Returns the writer, to flush before the process leaves by `os._exit`. Called again, it replaces the earlier one.
    """
    target = stream or sys.stderr
    writer = LineWriter(target)
    handler = _WriterHandler(writer)
    is_coloured = target.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(is_coloured=is_coloured))
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _WriterHandler)]:
        root.removeHandler(earlier)
        earlier._writer.stop()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    log.setLevel(level.upper())
    writer.start()
    return writer
