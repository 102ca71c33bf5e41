"""What a job may take: time, memory, cores. Declared by its handler, changed for a single job, raised by a retry."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec

MAX_SECONDS: Final = 366 * 86_400.0
MAX_MEMORY: Final = 1 << 50
MAX_CPUS: Final = 4096

_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.ASCII)
_FACTOR: Final = re.compile(r"x\s*(\d+(?:\.\d+)?)", re.ASCII)


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds, bytes, units of the host's `--procs`. None: not said here, which is no limit, or one unit."""

    timeout: float | None = None
    """From the start of the handler to the kill of its process tree."""
    soft_timeout: float | None = None
    """From the start of the handler to `SoftTimeout` in it."""
    memory: int | None = None
    """What the job may take beyond its child's size at its start, its own processes included."""
    cpus: int | None = None

    def over(self, declared: Limits) -> Limits:
        """These, and where they say nothing, the declared ones."""
        return Limits(
            timeout=declared.timeout if self.timeout is None else self.timeout,
            soft_timeout=declared.soft_timeout if self.soft_timeout is None else self.soft_timeout,
            memory=declared.memory if self.memory is None else self.memory,
            cpus=declared.cpus if self.cpus is None else self.cpus,
        )

    @property
    def text(self) -> str | None:
        """As it is stored with a job; None when nothing is said."""
        return None if self == NONE else msgspec.json.encode(self).decode()


NONE: Final = Limits()


class Room(msgspec.Struct, frozen=True):
    """What a host could give to a single job: bytes, units of its `--procs`."""

    memory: int = MAX_MEMORY
    cpus: int = MAX_CPUS

    def fits(self, asked: Limits) -> bool:
        """Whether a job with these limits could run there."""
        return (asked.memory or 0) <= self.memory and (asked.cpus or 0) <= self.cpus


class Reach(msgspec.Struct, frozen=True):
    """Which jobs may be leased: those of `handlers`, and of `larger` ones only where a job's own limits fit the room."""

    handlers: tuple[str, ...]
    larger: Mapping[str, Limits] = {}
    """What handlers declare that ask for more than there is room for."""
    room: Room = Room()
    is_whole: bool = True
    """False while jobs are left out that this host will have room for some other time."""

    @property
    def parameters(self) -> dict[str, object]:
        """As the queries take it."""
        return {
            "handlers": list(self.handlers),
            "larger": msgspec.json.encode(self.larger).decode(),
            "room": msgspec.json.encode(self.room).decode(),
        }


def reach(declared: Mapping[str, Limits], room: Room, *, is_whole: bool = True) -> Reach:
    """Which jobs of these handlers (name → what it declares) fit into the room."""
    larger = {name: asked for name, asked in declared.items() if not room.fits(asked)}
    return Reach(tuple(sorted(declared.keys() - larger.keys())), larger, room, is_whole)


class Change(msgspec.Struct, frozen=True, array_like=True):
    """How a retry changes a limit: to a value, or by a factor."""

    value: float | None = None
    factor: float = 1.0

    def of(self, limit: float | None) -> float | None:
        """The changed limit; no limit stays none, unless there is a value."""
        if self.value is not None:
            return self.value
        return None if limit is None else limit * self.factor


def limits(
    *,
    timeout: timedelta | float | None = None,
    soft_timeout: timedelta | float | None = None,
    memory: str | int | None = None,
    cpus: int | None = None,
) -> Limits:
    """The limits that a user wrote. Raises ValueError with what is wrong."""
    if cpus is not None and (type(cpus) is not int or not 1 <= cpus <= MAX_CPUS):
        raise ValueError(f"cpus is a whole number from 1 to {MAX_CPUS}, not {cpus!r}")
    found = Limits(
        timeout=None if timeout is None else _seconds(timeout, "timeout"),
        soft_timeout=None if soft_timeout is None else _seconds(soft_timeout, "soft_timeout"),
        memory=None if memory is None else parse_size(memory),
        cpus=cpus,
    )
    if found.timeout is not None and found.soft_timeout is not None and found.soft_timeout >= found.timeout:
        raise ValueError(f"soft_timeout ({found.soft_timeout:g} s) must be below timeout ({found.timeout:g} s)")
    return found


def parse_size(value: object) -> int:
    """Bytes from `4096`, `"512MiB"`, `"2GiB"`, `"1.5 GB"`. Raises ValueError."""
    size: float = math.nan
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip().lower())):
        size = float(match[1]) * {**_UNITS, **_BINARY}[match[2]]
    if math.isnan(size):
        raise ValueError(f"{value!r} is no size; write a number of bytes, 512MiB or 2GiB")
    if not 1 <= size <= MAX_MEMORY:
        raise ValueError(f"{value!r} must lie between 1 byte and 1 PiB")
    return int(size)


def size(count: int) -> str:
    """`512 B`, `1.5 KiB`, `20 MiB`, `3.2 GiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"


def parse_change(value: object, what: str) -> Change:
    """`"x2"` by a factor, anything else to a value: a size for `memory`, seconds or a timedelta for `timeout`."""
    if isinstance(value, str) and (match := _FACTOR.fullmatch(value.strip().lower())):
        factor = float(match[1])
        if not 0.01 <= factor <= 1000:
            raise ValueError(f"{what}={value!r}: a factor lies between x0.01 and x1000")
        return Change(factor=factor)
    if what == "memory":
        return Change(value=parse_size(value))
    if isinstance(value, timedelta | int | float) and not isinstance(value, bool):
        return Change(value=_seconds(value, what))
    raise ValueError(f"{what}={value!r} is neither seconds nor a factor like 'x1.5'")


@lru_cache(maxsize=1024)
def read_limits(text: str) -> Limits:
    """The limits stored with a job. Raises ValueError for what producers of ours do not write."""
    try:
        stored: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
        # jsonb keeps numbers, not their types: 4 may come back as 4.0 from whoever wrote it so.
        whole = {name: int(value) for name, value in stored.items() if name in ("memory", "cpus") and value is not None}
        return limits(**{**stored, **whole})
    except (TypeError, ValueError) as error:
        raise ValueError(f"the job's options {text:.200} can't be used: {error}") from error


def _seconds(given: timedelta | float, what: str) -> float:
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    if not 0 < seconds <= MAX_SECONDS:  # NaN fails this too
        raise ValueError(f"{what} must be more than 0 seconds and at most a year, not {given!r}")
    return seconds
