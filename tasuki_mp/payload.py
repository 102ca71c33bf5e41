"""Values to JSON text that Postgres can store, and back: the rules for payloads and results, without handlers.

What is refused: NUL characters and lone surrogates (jsonb has neither), NaN and infinities (JSON has neither), nesting
deeper than 64, and text beyond a limit. Integers may have up to 4,300 characters. Where a type says `float`, every finite
float comes back exactly, except that -0.0 comes back as 0.0; where nothing says so, 1e16 comes back as an integer,
because jsonb keeps numbers, not their spelling. Tuples, sets, datetimes and paths come back as what the type says, and
as lists and strings where nothing says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final

import msgspec

from tasuki_mp.errors import ResultError

MAX_DEPTH: Final = 64
DEFAULT_MAX_TEXT: Final = 1024 * 1024
"""Bytes of JSON text that a payload or a result may have, unless the application says otherwise."""

_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL in JSON text, but not an escaped backslash that stands before `u0000`."""
_LONGEST_NUMBER: Final = 15_000
"""Digits of a number in JSON text. Postgres keeps some 16,000 behind the point, its exponent included."""
_EXPONENT: Final = re.compile(r"[eE][+-]?0*[0-9]{4}")
_PLAIN_KEY: Final = re.compile(r"[^\W\d]\w*")
_SPOT: Final = re.compile(r"^(?P<reason>.*?)(?: - at `(?P<kind>key in )?(?P<path>\$.*)`)?$", re.DOTALL)
_MISSING_FIELD: Final = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
_UNKNOWN_FIELD: Final = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)


class FlawError(Exception):
    """Why a value can't become JSON text that Postgres stores; `path` says where, `kind` which rule it broke."""

    def __init__(self, kind: str, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.kind = kind
        self.path = path
        self.reason = reason


def enc_hook(value: Any) -> Any:
    """What msgspec does not know by itself but everybody means the same by: paths, and scalars and arrays of numpy."""
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    match value:  # subclasses; the base's own method, so that no code of the user's runs here
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise TypeError(f"a value of type {name} has no place in JSON; convert it to one that has")


def dec_hook(kind: type, value: Any) -> Any:
    """The counterpart of `enc_hook`, for the types that signatures may name."""
    if issubclass(kind, PurePath) and isinstance(value, str):
        return kind(value)
    return value


_encode = msgspec.json.Encoder(enc_hook=enc_hook).encode


def encode(value: Any, *, limit: int) -> bytes:
    """The value as compact JSON text in UTF-8. Raises FlawError for anything the module's rules refuse."""
    try:
        text = _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # UnicodeEncodeError, for lone surrogates, is a ValueError. Only a walk knows the place.
        raise find_flaw(value) or FlawError("type", "$", _words(error)) from error
    if len(text) > limit:
        raise FlawError("size", "$", f"is {len(text):,} bytes of JSON; the limit is {limit:,}")
    # A walk is slow, so it is made only where the text shows a trace of what it looks for: msgspec writes NaN as null.
    if b"null" in text or text.count(b"[") + text.count(b"{") > MAX_DEPTH or _has_nul(text):
        flaw = find_flaw(value)
        if flaw is not None:
            raise flaw
    return text


def encode_result(value: Any, *, limit: int = DEFAULT_MAX_TEXT) -> str | None:
    """A handler's return value as JSON text, None for None. Raises ResultError.

    NUL characters and lone surrogates are replaced by U+FFFD rather than refused: hours of work must not be lost to one
    odd character in somebody's text.
    """
    if value is None:
        return None
    try:
        try:
            return encode(value, limit=limit).decode()
        except FlawError as flaw:
            if flaw.kind != "text":
                raise
        return encode(_cleaned(value), limit=limit).decode()
    except FlawError as flaw:
        kind = "ResultTooLarge" if flaw.kind == "size" else "ResultNotSerialisable"
        raise ResultError(kind, f"the value returned, at {flaw.path}: {flaw.reason}") from flaw


def check_text(text: bytes, *, limit: int) -> dict[str, Any]:
    """The object that this JSON text is, if Postgres can store it as a payload. Raises FlawError with the reason."""
    if len(text) > limit:
        raise FlawError("size", "$", f"is {len(text):,} bytes of JSON; the limit is {limit:,}")
    try:
        value = _decode_object(text)
    except msgspec.ValidationError as error:
        path, reason = place(error)
        if "[...]" in path and (flaw := _flaw_in(text)) is not None:
            path = flaw.path  # msgspec does not say which key it was
        raise FlawError("type", path, _NO_OBJECT if path == "$" else reason) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        if b"\\ud" in text.lower() and (flaw := _flaw_in(text)) is not None:
            raise flaw from None  # a lone surrogate, of which msgspec says anything
        raise FlawError("type", "$", f'is no JSON ({_words(error)}); write it like {{"path": "a.png"}}') from None
    # As in `encode`: what takes long is done only where there is a trace of what it looks for.
    is_deep = len(text) > 2 * MAX_DEPTH and text.count(b"[") + text.count(b"{") > MAX_DEPTH
    if is_deep or b"\\u0000" in text:
        flaw = find_flaw(value)
        if flaw is not None:
            raise flaw
    if b"e-" in text or b"E-" in text or b"0e" in text or b"0E" in text or len(text) > _LONGEST_NUMBER:
        _decode_numbers(text)
    return value


def _flaw_in(text: bytes) -> FlawError | None:
    """The first flaw of a text that a more lenient reader takes; None if it does not either."""
    try:
        return find_flaw(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _storable_number(text: str) -> float:
    if len(text) > _LONGEST_NUMBER or _EXPONENT.search(text):
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise FlawError("number", "$", f"the number {shown} has more digits than Postgres keeps")
    return float(text)


_NO_OBJECT: Final = 'must be a JSON object of the handler\'s arguments, like {"path": "a.png"}'
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_numbers = msgspec.json.Decoder(float_hook=_storable_number).decode


def find_flaw(value: Any) -> FlawError | None:
    """The first place in the value that can't be stored, or None."""
    return next(_flaws(value, "$", 0), None)


def place(error: Exception) -> tuple[str, str]:
    """Where msgspec found a value of the wrong type, as a path like `$.boxes[3].x`, and its reason."""
    match = _SPOT.match(str(error))
    if match is None:
        return "$", str(error)
    path, reason = match["path"] or "$", match["reason"]
    if match["kind"]:
        reason = f"a key: {reason}"
    if missing := _MISSING_FIELD.match(reason):
        return path + step(missing["name"]), "missing"
    if unknown := _UNKNOWN_FIELD.match(reason):
        return path + step(unknown["name"]), "unexpected"
    return path, reason


def step(key: object) -> str:
    """One step of a path: `.name` where that reads well, else `["some key"]`."""
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f".{key}"
    shown = ascii(key)
    return f"[{shown if len(shown) <= 80 else shown[:77] + '...'}]"


def _flaws(value: Any, path: str, depth: int) -> Iterator[FlawError]:
    """Depth first: a value that contains itself ends at the depth limit, whatever its shape."""
    if isinstance(value, str):
        yield from _text_flaws(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield FlawError("number", path, f"{value} has no place in JSON; say None, or a string, or a finite number")
    elif isinstance(value, dict):
        if depth >= MAX_DEPTH:
            yield _too_deep(path)
            return
        for key, item in value.items():
            here = path + step(key)
            if isinstance(key, str):
                yield from _text_flaws(key, here)
            yield from _flaws(item, here, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        if depth >= MAX_DEPTH:
            yield _too_deep(path)
            return
        for index, item in enumerate(value):
            yield from _flaws(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        yield from _flaws({field.encode_name: getattr(value, field.name) for field in fields}, path, depth)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from _flaws(items, path, depth)
    elif isinstance(value, PurePath) or (type(value).__module__ == "numpy" and hasattr(value, "tolist")):
        yield from _flaws(enc_hook(value), path, depth)
    else:
        try:
            _encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            yield FlawError("type", path, _words(error))


def _text_flaws(text: str, path: str) -> Iterator[FlawError]:
    if "\0" in text:
        yield FlawError("text", path, "contains a NUL character, which Postgres cannot store; remove it, or send bytes")
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "contains a lone surrogate, which is no character; send such file names as bytes (os.fsencode)"
        yield FlawError("text", path, reason)


def _too_deep(path: str) -> FlawError:
    shown = path if len(path) <= 120 else f"{path[:117]}..."
    return FlawError("depth", shown, f"is nested deeper than {MAX_DEPTH} levels, or contains itself")


def _has_nul(text: bytes) -> bool:
    return b"\\u0000" in text and _NUL.search(text) is not None


def _words(error: Exception) -> str:
    """The error without what only confuses here."""
    if isinstance(error, RecursionError):
        return f"is nested deeper than {MAX_DEPTH} levels, or contains itself"
    return str(error)


def _cleaned(value: Any) -> Any:
    try:
        return _clean(msgspec.to_builtins(value, enc_hook=enc_hook))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Not only odd characters: what else is wrong is what counts.
        flaws = (flaw for flaw in _flaws(value, "$", 0) if flaw.kind != "text")
        raise next(flaws, FlawError("type", "$", _words(error))) from error


def _clean(tree: Any) -> Any:
    match tree:
        case str():
            return tree.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {_clean(key): _clean(item) for key, item in tree.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in tree]
        case _:
            return tree
