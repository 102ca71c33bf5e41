"""Any exception as an `ErrorInfo` that Postgres will take, whatever its class does when it is printed."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from tasuki_mp.errors import PayloadError, ResultError
from tasuki_mp.outcome import ErrorInfo, ErrorKind

MESSAGE_LIMIT: Final = 4 * 1024
TRACEBACK_LIMIT: Final = 32 * 1024
_LONGEST_LINE: Final = 2 * 1024
_INTERRUPTS: Final = str(Path(__file__).with_name("interrupts.py"))
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """The text without what jsonb refuses: NUL characters and lone surrogates are written as their escapes."""
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def clip(text: str, limit: int) -> str:
    """At most `limit` characters: the beginning and the end, with a note of what was left out between them."""
    if len(text) <= limit:
        return text
    note = f" … {len(text) - limit} characters left out … "
    room = limit - len(note)
    return text[: room // 2] + note + text[len(text) - (room - room // 2) :]


def describe(error: BaseException) -> ErrorInfo:
    """The exception's type, message and traceback; each part falls back to a word when the class misbehaves."""
    match error:
        case PayloadError():
            kind = ErrorKind.BAD_PAYLOAD
        case ResultError(kind=flaw, reason=reason):
            # The value is at fault. Where that was noticed is this package's own code.
            message = clip(storable(reason), MESSAGE_LIMIT)
            return ErrorInfo(kind=ErrorKind.BAD_RESULT, type=flaw, message=message)
        case _:
            kind = ErrorKind.ERROR
    return ErrorInfo(
        kind=kind,
        type=_type_name(error),
        message=clip(storable(_message(error)), MESSAGE_LIMIT),
        traceback=clip(storable(_traceback(error)), TRACEBACK_LIMIT),
    )


def _type_name(error: BaseException) -> str:
    kind = type(error)
    module = getattr(kind, "__module__", "builtins")
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    return clip(storable(name), 200)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001  a class whose __str__ raises must not take the child down
        return f"(its __str__ raised {type(broken).__name__})"


def _below_ours(frames: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's first frame on: how this package called it is of no use to anybody."""
    inner = frames
    while inner is not None and inner.tb_frame.f_globals.get("__package__", "").startswith("tasuki_mp.child"):
        inner = inner.tb_next
    return inner or frames


def _traceback(error: BaseException) -> str:
    # Locals are never captured: they may hold secrets. Chains and groups are bounded, cycles are broken by the library.
    try:
        report = traceback.TracebackException(
            type(error), error, _below_ours(error.__traceback__), limit=-100, compact=True, max_group_width=8
        )
        # How an interrupt came into the handler is of as little use as how the handler was called.
        report.stack = traceback.StackSummary.from_list(
            [frame for frame in report.stack if frame.filename != _INTERRUPTS]
        )
        lines = report.format()
        return "".join(clip(line, _LONGEST_LINE) for line in lines)
    except BaseException as broken:  # noqa: BLE001  as above: whatever goes wrong while describing
        return f"(its traceback could not be formatted: {type(broken).__name__})"
