"""Rows of text cells, as CSV has them, to payloads: each cell is converted by what the handler's signature says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect as described

from tasuki_mp import payload
from tasuki_mp.errors import PayloadError
from tasuki_mp.signature import Plan

_NESTED: Final = (
    *(described.CollectionType, described.TupleType, described.DictType, described.StructType),
    *(described.DataclassType, described.TypedDictType, described.NamedTupleType),
)
"""What no bare text can be: such a cell holds JSON."""


class Columns:
    """How the rows under one header become payloads of one handler.

    Raises PayloadError for a header that names what the handler doesn't take, or lacks what it needs.
    """

    def __init__(self, handler: str, plan: Plan, header: Sequence[str], *, limit: int) -> None:
        self._handler = handler
        self._plan = plan
        self._limit = limit
        info = described.type_info(plan.kind)
        fields = {field.encode_name: field for field in getattr(info, "fields", ())}
        for name in header:
            if name not in fields:
                known = ", ".join(fields) or "no arguments"
                raise PayloadError(handler, f"${payload.step(name)}", f"unexpected column; the payload has {known}")
            if header.count(name) > 1:
                raise PayloadError(handler, f"${payload.step(name)}", "is a column twice")
        for name, field in fields.items():
            if field.required and name not in header:
                raise PayloadError(handler, f"${payload.step(name)}", "no column has this name, and it has no default")
        self._columns = [(name, *_reading(fields[name])) for name in header]

    def payload(self, cells: Sequence[str]) -> bytes:
        """The payload of a row, as JSON text. Raises PayloadError."""
        if len(cells) != len(self._columns):
            raise PayloadError(self._handler, "$", f"has {len(cells)} cells, and the header {len(self._columns)}")
        row: dict[str, Any] = {}
        for (name, blank, read), cell in zip(self._columns, cells, strict=True):
            if not cell and blank is not _TEXT:
                if blank is not msgspec.UNSET:
                    row[name] = blank
            elif read is None:
                row[name] = cell
            else:
                row[name] = self._read(name, read, cell)
        try:
            value = msgspec.convert(row, self._plan.kind, strict=False, dec_hook=payload.dec_hook)
            text = payload.encode(value, limit=self._limit)
        except payload.FlawError as flaw:
            raise PayloadError(self._handler, flaw.path, flaw.reason) from flaw
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
            path, reason = payload.place(error)
            raise PayloadError(self._handler, path, reason) from error
        self._plan.require(text)
        return text

    def _read(self, name: str, read: Callable[[str], Any], cell: str) -> Any:
        try:
            return read(cell)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            reason = f"the cell of a column like this holds JSON ({payload.place(error)[1]})"
            raise PayloadError(self._handler, f"${payload.step(name)}", reason) from error


_TEXT: Final = object()
"""Stands for: an empty cell is an empty text."""


def _reading(field: described.Field) -> tuple[Any, Callable[[str], Any] | None]:
    """What an empty cell of a column means, and how another is read before it is converted; None: as it is."""
    kind = field.type
    while isinstance(kind, described.Metadata):
        kind = kind.type
    kinds = kind.types if isinstance(kind, described.UnionType) else (kind,)
    blank: Any = _TEXT
    if not field.required:
        blank = msgspec.UNSET
    elif any(isinstance(each, described.NoneType) for each in kinds):
        blank = None
    return blank, msgspec.json.decode if any(isinstance(each, _NESTED) for each in kinds) else None
