"""What each option's value may look like: text from a command line or the environment, or a value from a TOML file.

Every parser raises ValueError with a message that says what to write instead; the caller adds where it came from.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tasuki_mp.backoff import MAX_DELAY
from tasuki_mp.job import NAME_PATTERN
from tasuki_mp.limits import parse_size

MAX_WEIGHT: Final = 1000
MAX_PROCS: Final = 4096
_DAY: Final = 86_400.0
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds from `90`, `"90"`, `"90s"`, `"1m30s"`, `"250ms"`, `"2h"`, `"1d"`. Raises ValueError."""
    seconds = _as_number(value)
    if seconds is None:
        raise ValueError(f"{value!r} is no duration; write 90s, 1m30s, 250ms, 2h or 1d")
    if not 0 <= seconds <= MAX_DELAY:
        raise ValueError(f"{value!r} must lie between 0 seconds and a hundred years")
    return seconds


def _as_number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    parts = _DURATION.findall(text)
    units = {unit for _, unit in parts}
    if not parts or _DURATION.sub("", text) or len(units) < len(parts):
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)


def parse_queues(value: object) -> tuple[tuple[str, int], ...]:
    """(name, weight) of each queue from `"a"`, `"b=3"`, `"a,b=3"`, a list of those, or a table of weights."""
    if isinstance(value, dict):
        entries = [f"{name}={weight}" for name, weight in value.items()]
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) < len(items):
            raise ValueError(f'{value!r} is no list of queues; write "name" or "name=weight"')
        entries = [entry.strip() for text in texts for entry in text.split(",") if entry.strip()]
    queues: dict[str, int] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"{name!r} is no queue name: 1 to 57 letters, digits, '_', '.', ':' or '-'")
        if equals and not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_WEIGHT):
            raise ValueError(f"{entry!r}: a queue's weight is a whole number from 1 to {MAX_WEIGHT}")
        if name in queues:
            raise ValueError(f"queue {name!r} is given twice")
        queues[name] = int(text) if equals else 1
    if not queues:
        raise ValueError("no queue is named; leave the option out for all queues of the application")
    return tuple(queues.items())


def parse_address(value: object) -> tuple[str, int]:
    """(host, port) from `"HOST:PORT"`, `"[::1]:PORT"`, `":PORT"` or a port alone, which mean this machine only."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65_535):
        raise ValueError(f"{value!r} is no address; write HOST:PORT, for example 127.0.0.1:9100")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{value!r}: write an IPv6 address in brackets, like [::1]:9100")
    return host or "127.0.0.1", int(port)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value.strip()


def _application(value: object) -> str:
    module, _, name = _text(value).partition(":")
    if not all(part.isidentifier() for each in (module, name) for part in each.split(".")):
        raise ValueError(f"{value!r} names no application; write it as package.module:name")
    return f"{module}:{name}"


def _folder(value: object) -> str:
    folder = _text(value)
    if not os.path.isdir(folder):
        raise ValueError(f"{value!r} is no folder")
    return folder


def _whole(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise ValueError(f"{value!r} must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(least: float, most: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        seconds = parse_duration(value)
        if not least <= seconds <= most:
            raise ValueError(f"{value!r} must lie between {least:g} and {most:g} seconds")
        return seconds

    return parse


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value.strip().lower() not in choices:
            raise ValueError(f"{value!r} must be one of {', '.join(choices)}")
        return value.strip().lower()

    return parse


_SWITCHES: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _keep(value: object) -> float | None:
    """Seconds, or None for `forever`. Less than a day can't be kept: days are dropped as a whole."""
    if isinstance(value, str) and value.strip().lower() == "forever":
        return None
    seconds = parse_duration(value)
    if seconds < _DAY:
        raise ValueError(f"{value!r} must be a day or more, or forever; for a single queue see `tasuki-mp queue keep`")
    return seconds


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _SWITCHES:
        return _SWITCHES[value.strip().lower()]
    raise ValueError(f"{value!r} must be true or false")


def _drain(value: object) -> str | None:
    if isinstance(value, bool):
        return "all" if value else None
    return _choice("all", "due")(value)


def parse_modules(value: object) -> tuple[str, ...] | None:
    """Modules from `"a.b"`, `"a,b.c"` or a list of those; none for true, and None for false, which preloads nothing."""
    if isinstance(value, bool):
        return () if value else None
    items = list(value) if isinstance(value, list | tuple) else [value]
    names = [name.strip() for item in items if isinstance(item, str) for name in item.split(",")]
    if len(items) == len(names) == 1 and names[0].lower() in _SWITCHES:
        return () if _SWITCHES[names[0].lower()] else None
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"{name!r} is no module's name; write package.module, or false to preload nothing")
    if len(names) < len(items):
        raise ValueError(f"{value!r} is no list of modules")
    return tuple(dict.fromkeys(names))


def parse_slot_env(value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(variable, value for each slot) from `"GPU=0,1"`, `"GPU=0,1;2,3"` where values have commas, a list, or a table."""
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        texts = list(value) if isinstance(value, list | tuple) else str(value).split()
        pairs = [(name, given) for name, _, given in (str(text).partition("=") for text in texts)]
    found: dict[str, tuple[str, ...]] = {}
    for name, given in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no variable's name; write NAME=value,value with one value for each slot")
        if name in found:
            raise ValueError(f"{name} is given twice")
        text = str(given)
        values = [str(each) for each in given] if isinstance(given, list) else text.split(";" if ";" in text else ",")
        if "" in values or any("\0" in each for each in values):
            raise ValueError(f"{name}: an empty value; write {name}=value,value with one value for each slot")
        found[name] = tuple(values)
    if not found:
        raise ValueError("no variable is named; write NAME=value,value with one value for each slot")
    return tuple(found.items())


PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "app": _application,
    "app-dir": _folder,
    "procs": _whole(1, MAX_PROCS),
    "memory-limit": parse_size,
    "max-jobs-per-child": _whole(1, 2**31 - 1),
    "max-child-age": _seconds(1, 366 * 86_400),
    "queue": parse_queues,
    "lease": _seconds(0.5, 86_400),
    "grace": _seconds(0, 7 * 86_400),
    "poll": _seconds(0.01, 3600),
    "drain": _drain,
    "http": parse_address,
    "keep-completed": _keep,
    "keep-failed": _keep,
    "log-level": _choice(*LOG_LEVELS),
    "log-format": _choice("text", "json"),
    "migrate": _switch,
    "notify": _switch,
    "preload": parse_modules,
    "slot-env": parse_slot_env,
    "reload": _switch,
}
