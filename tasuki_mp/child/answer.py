"""How an attempt ended, from what the handler returned or raised."""

from __future__ import annotations

from typing import Any

import msgspec

from tasuki_mp import handlers
from tasuki_mp.child.describe import clip, describe, storable
from tasuki_mp.errors import PayloadError
from tasuki_mp.handlers import Handler
from tasuki_mp.outcome import (
    AskedCancel,
    AskedRetry,
    AskedSnooze,
    Cancel,
    ErrorInfo,
    ErrorKind,
    Outcome,
    Raised,
    Retry,
    Returned,
    Snooze,
)


def to_value(value: Any, *, limit: int) -> Outcome:
    """What the handler returned. Raises ResultError if that can't be stored; `limit` is bytes of JSON text."""
    match value:
        case None:
            return Returned(None)
        case Retry():
            return AskedRetry(value.after, value.memory, value.timeout)
        case Snooze():
            return AskedSnooze(value.after)
        case Cancel():
            return AskedCancel(clip(storable(value.reason), 4096))
        case _:
            return Returned(handlers.encode_result(value, limit=limit))


def to_unknown(name: str) -> Outcome:
    """A job of a handler that isn't there."""
    message = f"this application has no handler {name!r}"
    return Raised(ErrorInfo(kind=ErrorKind.UNKNOWN_HANDLER, type="UnknownHandlerError", message=message))


def to_error(error: BaseException, handler: Handler[..., Any] | None, attempt: int) -> Outcome:
    """An exception, of the handler or of what goes before it; the handler's own rules say whether it may be retried."""
    info = describe(error)
    match info.kind:
        case ErrorKind.BAD_RESULT:
            return Raised(info, is_retryable=False)
        case ErrorKind.BAD_PAYLOAD:
            # A payload that does not fit may be one from a newer release that another host runs already; one that is
            # no readable JSON fits nowhere.
            return Raised(info, is_retryable=not (isinstance(error, PayloadError) and error.path == "$"))
        case _:
            pass
    if handler is None:
        return Raised(info)
    try:
        is_retryable, delay = handler.answer(error, attempt)
    except BaseException as broken:  # noqa: BLE001  the backoff function is user code too
        note = f"{info.message}\n(its handler's backoff function raised {type(broken).__name__}; the default was used)"
        return Raised(msgspec.structs.replace(info, message=clip(note, 4096)))
    return Raised(info, is_retryable, delay)
