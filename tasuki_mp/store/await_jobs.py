"""How many jobs of a set are not final yet, and how the others ended. Reads only."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp import sql
from tasuki_mp.store.copying import IdRanges

_LEFT: Final = sql.query("jobs_left")
_ENDED: Final = sql.query("jobs_ended")

Connection = psycopg.Connection[tuple[Any, ...]]


class Ended(msgspec.Struct, frozen=True):
    """The jobs that reached one final state. Of those that did not complete, the first one and its error."""

    status: str
    jobs: int
    first_id: int
    error_type: str | None
    error_message: str | None


def left(conn: Connection, ids: IdRanges) -> int:
    """How many are not final. When none is, each is in the archive, unless it was deleted."""
    row = conn.execute(_LEFT, _bounds(ids)).fetchone()
    return 0 if row is None else int(row[0])


def ended(conn: Connection, ids: IdRanges) -> dict[str, Ended]:
    """By final state, those that are in the archive. Reads each of them."""
    return {row[0]: Ended(*row) for row in conn.execute(_ENDED, _bounds(ids))}


def _bounds(ids: IdRanges) -> dict[str, Any]:
    return {"firsts": [each.start for each in ids.ranges], "lasts": [each.stop - 1 for each in ids.ranges]}
