"""The ledger's entry: what an attempt used, as the JSON text that is stored with it."""

from __future__ import annotations

import json
import socket
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
    text = f'{{"host":{_HOST},"waited_seconds":{waited:.6f}'
    if place is not None:
        text += f',"pid":{place.pid},"slot":{place.slot}'
        if place.version:
            text += f',"version":{json.dumps(place.version)}'
    if seconds is not None:
        text += f',"seconds":{seconds:.6f}'
    user, system, peak = used
    if user is not None and system is not None:
        text += f',"cpu_seconds":{user + system:.6f},"user_seconds":{user:.6f},"system_seconds":{system:.6f}'
    if peak is not None:
        text += f',"memory_peak":{peak}'
    if signal:
        text += f',"signal":{json.dumps(signal)}'
    return text + "}"
