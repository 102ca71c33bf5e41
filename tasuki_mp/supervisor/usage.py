"""The ledger's entry: what an attempt used, as the JSON text that is stored with it."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

import msgspec

_HOST: Final = socket.gethostname().encode(errors="replace").decode()
_encode = msgspec.json.Encoder().encode


class Used(msgspec.Struct, frozen=True, gc=False):
    """CPU seconds and bytes of one attempt; None where nobody could say."""

    user: float | None = None
    system: float | None = None
    peak: int | None = None
    """At most, beyond the child's size at its hello."""


NOTHING_KNOWN: Final = Used()


class Place(NamedTuple):
    """Where an attempt ran, if it did."""

    pid: int | None = None
    slot: int | None = None
    version: str = ""
    """The application's."""


NOWHERE: Final = Place()


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """As it is stored: a value that is unknown is left out."""

    host: str
    waited_seconds: float
    pid: int | None = None
    slot: int | None = None
    version: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    memory_peak: int | None = None
    signal: str = ""


def usage_json(
    *,
    place: Place = NOWHERE,
    seconds: float | None = None,
    used: Used = NOTHING_KNOWN,
    waited: float,
    signal: str = "",
) -> str:
    """The entry. Made for every job, in a microsecond."""
    pid, slot, version = place
    user, system, peak = used.user, used.system, used.peak
    cpu = None if user is None or system is None else round(user + system, 6)
    return _encode(_Entry(_HOST, waited, pid, slot, version, seconds, cpu, user, system, peak, signal)).decode()
