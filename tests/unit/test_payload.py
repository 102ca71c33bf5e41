"""What becomes JSON text, what is refused and where it says the flaw is."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasuki_mp import payload
from tasuki_mp.errors import ResultError
from tasuki_mp.payload import MAX_DEPTH, FlawError, encode, encode_result

LIMIT = 1000


class Size(msgspec.Struct):
    width: float
    label: str = ""


@dataclasses.dataclass
class Box:
    corner: Path
    size: Size | None = None


class Color(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("no code of the user's runs while encoding")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def itself_in_a_dict() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("a", '"a"'),
        (0.1, "0.1"),
        (b"\0\xff", '"AP8="'),
        (Path("/a/b"), '"/a/b"'),
        (PurePosixPath("c"), '"c"'),
        ({Path("a"): (1, 2)}, '{"a":[1,2]}'),
        (Box(Path("a"), Size(1.5)), '{"corner":"a","size":{"width":1.5,"label":""}}'),
        (Color.RED, '"red"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.10"), '"1.10"'),
        (dt.datetime(2024, 5, 6, 7, 8, tzinfo=dt.UTC), '"2024-05-06T07:08:00Z"'),
        (dt.timedelta(seconds=90), '"PT90S"'),
        (Text("kept"), '"kept"'),
        (type("Count", (int,), {})(3), "3"),
        (type("Share", (float,), {})(0.5), "0.5"),
        ([None, {"a": None}], '[null,{"a":null}]'),
        ("\\u0000", '"\\\\u0000"'),
        (nested(MAX_DEPTH), "[" * 64 + "1" + "]" * 64),
        ([[i] for i in range(100)], json.dumps([[i] for i in range(100)], separators=(",", ":"))),
    ],
)
def test_values_become_compact_json(value: Any, text: str) -> None:
    assert encode(value, limit=LIMIT).decode() == text
    assert encode_result(value, limit=LIMIT) == text


@pytest.mark.parametrize(
    ("value", "kind", "path"),
    [
        ("a\0b", "text", "$"),
        ({"a": ["x", "\0"]}, "text", "$.a[1]"),
        ({"k\0": 1}, "text", r"$['k\x00']"),
        ("\\\0", "text", "$"),
        pytest.param("\ud800", "text", "$", id="surrogate"),
        ({"two words": "\udcff"}, "text", "$['two words']"),
        (Path("/tmp/\udcff"), "text", "$"),
        (Box(Path("a"), Size(1.0, "\0")), "text", "$.size.label"),
        (math.nan, "number", "$"),
        ([1.0, {"a": -math.inf}], "number", "$[1].a"),
        (Box(Path("a"), Size(math.inf)), "number", "$.size.width"),
        (object(), "type", "$"),
        ({"a": [1, {2: ValueError("x")}]}, "type", "$.a[1][2]"),
        ([lambda: 1], "type", "$[0]"),
        pytest.param(10**4300, "type", "$", id="digits"),
        ("x" * LIMIT, "size", "$"),
        (nested(MAX_DEPTH + 1), "depth", None),
        (nested(100_000), "depth", None),
        (itself(), "depth", None),
        (itself_in_a_dict(), "depth", None),
    ],
)
def test_what_postgres_or_json_can_not_hold_is_refused_with_its_place(value: Any, kind: str, path: str | None) -> None:
    with pytest.raises(FlawError) as caught:
        encode(value, limit=LIMIT)
    assert caught.value.kind == kind
    assert path is None or caught.value.path == path
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\0b", '"a�b"'),
        ("\\\0", '"\\\\�"'),
        ("\\u0000\0", '"\\\\u0000�"'),
        ({"k\0": ["\ud800", {1: "\udfff"}]}, '{"k�":["�",{"1":"�"}]}'),
        (Size(1.0, "\0"), '{"width":1.0,"label":"�"}'),
    ],
)
def test_odd_characters_in_a_result_are_replaced(value: Any, text: str) -> None:
    assert encode_result(value, limit=LIMIT) == text


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("x" * LIMIT, "ResultTooLarge", "limit is 1,000"),
        ("\0" + "x" * LIMIT, "ResultTooLarge", "limit is 1,000"),
        (math.nan, "ResultNotSerialisable", "nan"),
        (["\0", math.nan], "ResultNotSerialisable", r"\$\[1\]: nan"),
        (["\0", object()], "ResultNotSerialisable", r"\$\[1\].*object"),
        (["\0", itself()], "ResultNotSerialisable", "contains itself"),
        (itself(), "ResultNotSerialisable", "contains itself"),
        (itself_in_a_dict(), "ResultNotSerialisable", "contains itself"),
        (object(), "ResultNotSerialisable", "object"),
        (b"x" * LIMIT, "ResultTooLarge", "limit"),
    ],
)
def test_other_results_are_refused(value: Any, kind: str, words: str) -> None:
    with pytest.raises(ResultError, match=words) as caught:
        encode_result(value, limit=LIMIT)
    assert caught.value.kind == kind


def test_no_result_is_none() -> None:
    assert encode_result(None) is None


def test_numpy_values_are_numbers_and_lists() -> None:
    # Stands for numpy, which the tests do not install: the encoder goes by the module's name and by tolist().
    array = type("ndarray", (), {"__module__": "numpy", "tolist": lambda _: [1.5, float("nan")]})()
    scalar = type("int64", (), {"__module__": "numpy", "tolist": lambda _: 7})()
    assert encode({"n": scalar}, limit=LIMIT) == b'{"n":7}'
    with pytest.raises(FlawError) as caught:
        encode({"a": array}, limit=LIMIT)
    assert caught.value.path == "$.a[1]"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Expected `int`, got `str` - at `$.width`", ("$.width", "Expected `int`, got `str`")),
        ("Expected `object`, got `array`", ("$", "Expected `object`, got `array`")),
        ("Object missing required field `x` - at `$.boxes[3]`", ("$.boxes[3].x", "missing")),
        ("Object contains unknown field `a b`", ("$['a b']", "unexpected")),
        ("Expected `int`, got `str` - at `key in $.a`", ("$.a", "a key: Expected `int`, got `str`")),
        ("Input data was truncated", ("$", "Input data was truncated")),
    ],
)
def test_the_place_is_read_from_the_decoder_s_words(message: str, expected: tuple[str, str]) -> None:
    assert payload.place(msgspec.ValidationError(message)) == expected


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        (rb'{"n": "\ud800"}', "$.n", "contains a lone surrogate"),
        (rb'{"a": [1, {"n\uDC00": 2}]}', r"$.a[1]['n\udc00']", "contains a lone surrogate"),
        (rb'{"n": 1e400}', "$.n", "Number out of range"),
        (rb'{"a": {"n": [1, -1e400]}}', "$.a.n[1]", "Number out of range"),
        (rb'{"n": "\ud83d\ude00", "m": "abc', "$", "is no JSON (Input data was truncated)"),
        (rb'{"n": "\ud800', "$", "is no JSON"),
    ],
)
def test_the_place_is_found_where_the_decoder_does_not_say_it(text: bytes, path: str, reason: str) -> None:
    with pytest.raises(payload.FlawError) as caught:
        payload.check_text(text, limit=1000)
    assert caught.value.path == path
    assert caught.value.reason.startswith(reason)


TEXT = st.text(st.characters())  # lone surrogates and NUL included
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(json_values)
def test_what_is_accepted_is_json_without_anything_jsonb_refuses(value: Any) -> None:
    try:
        text = encode(value, limit=10**6)
    except FlawError:
        assert payload.find_flaw(value) is not None
        return
    assert payload.find_flaw(value) is None

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    assert all("\0" not in found for found in texts(json.loads(text, parse_constant=refuse)))


def texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from texts(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from texts(item)


@given(json_values)
def test_a_result_is_encoded_or_refused_but_never_breaks(value: Any) -> None:
    try:
        text = encode_result(value)
    except ResultError:
        return
    assert (text is None) == (value is None)
    assert text is None or all("\0" not in found for found in texts(json.loads(text)))
