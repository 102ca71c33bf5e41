"""Rows with unique keys, put in the order of their keys however many they are.

Whoever inserts several keys in one transaction holds each until its end: two that take them in different orders could wait
for each other. A chunk that is full is sorted and written to an unlinked file; in the end the chunks are merged, so that
memory holds some blocks of each, and of the rows no more than one chunk.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

import msgspec

from tasuki_mp.job import JobRow

_BLOCK: Final = 50
"""Rows that are read at once out of each chunk."""
_CODER: Final = msgspec.msgpack.Encoder()


class Drawn(NamedTuple):
    """A row and the id that was drawn for it."""

    id: int
    row: JobRow

    @property
    def place(self) -> tuple[bool, str]:
        """Where it stands among the others: by the code points of its key, as the database sorts them; those without last."""
        unique = self.row.unique
        return (unique is None, "" if unique is None else unique.key)


_DECODER: Final = msgspec.msgpack.Decoder(list[Drawn])


class Keyed:
    """Rows put aside; `chunks` gives them back in order, and forgets them."""

    def __init__(self, *, jobs: int, size: int) -> None:
        self._most = (jobs, size)
        self._rows: list[Drawn] = []
        self._size = 0
        self._file: IO[bytes] | None = None
        self._runs: list[list[range]] = []
        """Of each chunk in the file, where its blocks are."""

    def __bool__(self) -> bool:
        return bool(self._rows or self._runs)

    def add(self, id: int, row: JobRow) -> None:
        """Put a row aside."""
        self._rows.append(Drawn(id, row))
        self._size += len(row.payload)
        jobs, size = self._most
        if len(self._rows) >= jobs or self._size >= size:
            self._write()

    def chunks(self) -> Iterator[list[Drawn]]:
        """All rows in order, no more at a time than a chunk holds; of those with the same key, the first one first."""
        self._rows.sort(key=lambda drawn: drawn.place)
        runs = [] if self._file is None else [_read(self._file.fileno(), blocks) for blocks in self._runs]
        merged = heapq.merge(*runs, iter(self._rows), key=lambda drawn: drawn.place)
        jobs, most = self._most
        for first in merged:
            chunk, size = [first], len(first.row.payload)
            while len(chunk) < jobs and size < most and (drawn := next(merged, None)) is not None:
                chunk.append(drawn)
                size += len(drawn.row.payload)
            yield chunk
        self.close()

    def close(self) -> None:
        """Forget what was put aside."""
        self._rows, self._runs, self._size = [], [], 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """Write the rows that are in memory to the file, in order."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="tasuki-mp-")  # noqa: SIM115  closed once all were read
        self._rows.sort(key=lambda drawn: drawn.place)
        blocks = []
        for first in range(0, len(self._rows), _BLOCK):
            begin = self._file.tell()
            self._file.write(_CODER.encode(self._rows[first : first + _BLOCK]))
            blocks.append(range(begin, self._file.tell()))
        self._file.flush()
        self._runs.append(blocks)
        self._rows, self._size = [], 0


def _read(file: int, blocks: list[range]) -> Iterator[Drawn]:
    for block in blocks:
        yield from _DECODER.decode(os.pread(file, len(block), block.start))
