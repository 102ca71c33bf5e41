"""A job of a map: its payload is a list of payloads, its result the list of what its handler returned for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tasuki_mp.errors import PayloadError
from tasuki_mp.handlers import Handler
from tasuki_mp.outcome import Cancel, Retry, Snooze

_split: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_list(payload: str) -> bool:
    """Whether this is a map's job; any other payload is an object."""
    return payload.startswith("[")


def call_each(
    handler: Handler[..., Any], payload: str, injected: Mapping[str, Any], call: Callable[[dict[str, Any]], Any]
) -> Any:
    """What `call` returns for the arguments of each item; or the first Retry, Snooze or Cancel, alone.

    Raises PayloadError, and what `call` raises, with a note of which item it was.
    """
    try:
        items = _split(payload)
    except msgspec.MsgspecError as error:
        raise PayloadError(handler.name, "$", str(error)) from error
    results = []
    for index, item in enumerate(items):
        try:
            value = call({**handler.decode(bytes(item).decode()), **injected})
        except BaseException as error:
            error.add_note(f"in item {index} of the {len(items)} that this job of a map carries")
            raise
        if isinstance(value, Retry | Snooze | Cancel):
            return value
        results.append(value)
    return results
