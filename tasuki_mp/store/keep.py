"""What running jobs say of themselves, put on record while they run: progress and checkpoints. See `sql/queries/keep.sql`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg

from tasuki_mp import sql

_KEEP: Final = sql.query("keep")

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


class KeepItem(msgspec.Struct, frozen=True, kw_only=True):
    """One running job. Without `has_progress` its progress stays; without a checkpoint (JSON text) so does that.

    Of two checkpoints under one lease the one of the higher version is the newer.
    """

    id: int
    lease_no: int
    has_progress: bool = False
    fraction: float | None = None
    note: str = ""
    checkpoint: str | None = None
    version: int = 0


async def keep(conn: AsyncConnection, *, owner: UUID, items: Sequence[KeepItem]) -> set[tuple[int, int]]:
    """Write these down; returns (id, lease_no) of those that were.

    The others were locked by somebody, or are no longer this owner's. The ids must not repeat. Raises psycopg's error
    when the database refuses one of them; then nothing was written.
    """
    ordered = sorted(items, key=lambda item: item.id)
    cursor = await conn.execute(
        _KEEP,
        {
            "owner": owner,
            "ids": _array([str(item.id) for item in ordered]),
            "lease_nos": _array([str(item.lease_no) for item in ordered]),
            "has_progress": _array(["t" if item.has_progress else "f" for item in ordered]),
            "fractions": _array(["NULL" if item.fraction is None else repr(item.fraction) for item in ordered]),
            "notes": [item.note for item in ordered],
            "checkpoints": [item.checkpoint for item in ordered],
            "versions": _array([str(item.version) for item in ordered]),
        },
        prepare=True,
    )
    return {(id, lease_no) for id, lease_no in await cursor.fetchall()}


def _array(values: list[str]) -> str:
    """An array literal, so that the statement is always of the same types and is prepared once."""
    return "{" + ",".join(values) + "}"
