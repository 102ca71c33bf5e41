"""Files of jobs, line by line in constant memory: NDJSON or CSV, plain or gzip, from a path or standard input."""

from __future__ import annotations

import csv
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import msgspec

from tasuki_mp.errors import ConfigError

Format = Literal["jsonl", "csv"]

STDIN: Final = "-"
_BLOCK: Final = 256 * 1024
_LONGEST: Final = 16 * 1024 * 1024
"""Bytes of one line, or of one CSV record. What is longer is no file of jobs, and must not fill the memory."""
_BOM: Final = b"\xef\xbb\xbf"


class Line(msgspec.Struct, frozen=True):
    """A line that isn't blank; its number counts from 1, and of a CSV record with several lines it is the first."""

    number: int
    raw: bytes
    """Without the line's end."""
    cells: list[str] | None = None
    flaw: str | None = None
    """Why it can't even be taken apart."""


class Source(msgspec.Struct, frozen=True):
    """Where the lines come from."""

    name: str
    """For people."""
    format: Format
    stream: BinaryIO
    size: int | None
    """Bytes, as far as that is known beforehand."""
    position: Callable[[], int]
    """Bytes of it that have been read, before they were unpacked."""


def format_of(path: str) -> Format:
    """What its name says it holds."""
    return "csv" if path.lower().removesuffix(".gz").endswith(".csv") else "jsonl"


@contextmanager
def opened(path: str, form: Format | None) -> Iterator[Source]:
    """The file of that path, or standard input for `-`. Raises ConfigError."""
    lower = path.lower()
    form = form or format_of(path)
    with ExitStack() as stack:
        if path == STDIN:
            file: BinaryIO = sys.stdin.buffer
        else:
            with _readable(path):
                file = stack.enter_context(Path(path).open("rb"))
        stream = cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=file))) if lower.endswith(".gz") else file
        size = os.fstat(file.fileno()).st_size if path != STDIN else 0
        name = "standard input" if path == STDIN else path
        yield Source(name, form, stream, size or None, file.tell if file.seekable() and size else lambda: 0)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{name} is no whole gzip file: {error}") from error
    except OSError as error:
        raise ConfigError(f"can't read {name}: {error.strerror or error}") from error


def lines(source: Source) -> Iterator[Line]:
    """All lines that aren't blank; of CSV the header, too, which comes first."""
    raw = _raw_lines(source)
    if source.format == "csv":
        yield from _records(raw)
        return
    for number, line in enumerate(raw, 1):
        if line and not line.isspace():
            yield Line(number, line, flaw=_too_long(line))


def _raw_lines(source: Source) -> Iterator[bytes]:
    """Each line without its end. One that is too long is cut, and still longer than is allowed."""
    tail = b""
    is_first, is_cut = True, False
    while block := _block(source):
        if is_first:
            block, is_first = block.removeprefix(_BOM), False
        parts = block.split(b"\n")
        if is_cut:
            # Within a line that is too long: what belongs to it still is dropped.
            if len(parts) == 1:
                continue
            parts[0], is_cut = tail, False
        else:
            parts[0] = tail + parts[0]
        tail = parts.pop()
        yield from parts
        if len(tail) > _LONGEST:
            is_cut = True
    if tail:
        yield tail


def _block(source: Source) -> bytes:
    """The next bytes; of a pipe those that are there already."""
    with _readable(source.name):
        block: bytes = source.stream.read1(_BLOCK)  # type: ignore[attr-defined]  # all of these streams have it
        return block


def _records(raw: Iterator[bytes]) -> Iterator[Line]:
    """CSV records. A cell in quotes may go over several lines."""
    csv.field_size_limit(_LONGEST)
    taken: list[bytes] = []

    def texts() -> Iterator[str]:
        for line in raw:
            taken.append(line)
            # Bytes that are no UTF-8 become what no payload may contain, and are refused with their place.
            yield line.decode("utf-8", "surrogateescape") + "\n"

    number = 1
    reader = csv.reader(texts(), strict=True)
    while True:
        flaw = None
        cells: list[str] | None = None
        try:
            cells = next(reader, None)
            if cells is None:
                return
        except csv.Error as error:
            flaw = f"is no CSV: {error}"
        record = b"\n".join(taken)
        if cells or flaw:
            yield Line(number, record, cells, flaw or _too_long(record))
        number += len(taken)
        taken.clear()


def _too_long(line: bytes) -> str | None:
    return f"is longer than {_LONGEST:,} bytes" if len(line) > _LONGEST else None
