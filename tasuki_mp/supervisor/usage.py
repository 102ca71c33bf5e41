"""The ledger's entry: what an attempt used, as the JSON text that is stored with it."""

from __future__ import annotations

import json
import socket
from functools import lru_cache
from typing import Final, NamedTuple

_HOST: Final = json.dumps(socket.gethostname())


class Used(NamedTuple):
    """CPU seconds and bytes of one attempt; None where nobody could say."""

    user: float | None = None
    system: float | None = None
    peak: int | None = None
    """At most, beyond the child's size at its hello."""


NOTHING_KNOWN: Final = Used()


class Place(NamedTuple):
    """Where an attempt ran."""

    pid: int
    slot: int
    version: str
    """The application's."""


def usage_json(
    *,
    place: Place | None = None,
    seconds: float | None = None,
    used: Used = NOTHING_KNOWN,
    waited: float,
    signal: str = "",
) -> str:
    """The entry. Written by hand because it is made for every job; a value that is unknown is left out."""
    # With %, which takes half as long as an f-string for numbers with a format.
    text = '%s"waited_seconds":%.6f' % (_place(place), waited)  # noqa: UP031
    if seconds is not None:
        text += ',"seconds":%.6f' % seconds  # noqa: UP031
    user, system, peak = used
    if user is not None and system is not None:
        cpu = (user + system, user, system)
        text += ',"cpu_seconds":%.6f,"user_seconds":%.6f,"system_seconds":%.6f' % cpu  # noqa: UP031
    if peak is not None:
        text += f',"memory_peak":{peak}'
    if signal:
        text += f',"signal":{json.dumps(signal)}'
    return text + "}"


@lru_cache(maxsize=256)
def _place(place: Place | None) -> str:
    """How the entry begins: the same for every job of a child."""
    text = f'{{"host":{_HOST},'
    if place is not None:
        text += f'"pid":{place.pid},"slot":{place.slot},'
        if place.version:
            text += f'"version":{json.dumps(place.version)},'
    return text
