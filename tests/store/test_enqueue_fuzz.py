"""Any payload at all is refused when the job is built, or comes back from Postgres as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasuki_mp import Client, Job, PayloadError
from tasuki_mp.payload import FlawError, check_text
from tests.store.producer_app import anything, typed
from tests.support.postgres import Postgres

Conn = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def module_dsn(postgres: Postgres, template: str) -> Iterator[str]:
    with postgres.database(template) as address:
        yield address


@pytest.fixture(scope="module")
def own(module_dsn: str) -> Iterator[Conn]:
    """A connection whose transaction is never committed."""
    with psycopg.connect(module_dsn) as it:
        yield it
        it.rollback()


TEXT = st.text(st.characters())  # NUL and lone surrogates included
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.integers(4295, 4305).map(lambda digits: 10**digits)
    | st.integers(4295, 4305).map(lambda digits: -(10**digits))
    | st.floats()
    | TEXT
    | st.sampled_from(["\0", "a\0", "\\u0000", "\ud800", "\udfff\ud800", "\\", '"', "\u2028", "\U0010ffff", "\ufffe"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=15)
DEEP = st.tuples(st.integers(60, 70), st.booleans(), SCALARS).map(lambda deep: nested(*deep))


def nested(depth: int, is_list: bool, value: Any) -> Any:
    for _ in range(depth):
        value = [value] if is_list else {"x": value}
    return value


def is_same(a: Any, b: Any) -> bool:
    """Equal as JSON: jsonb keeps a number's value, but not whether it was spelt as an integer."""
    match a, b:
        case (bool(), _) | (_, bool()) | (None, _) | (_, None) | (str(), _):
            return type(a) is type(b) and bool(a == b)
        case (int(), int()):
            return a == b
        case (float() | int(), float() | int()):
            return float(a) == float(b)
        case (list(), list()):
            return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
        case (dict(), dict()):
            return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
        case _:
            return False


def is_refusable(value: Any, depth: int = 1) -> bool:
    """Whether there is a reason to refuse the value; `depth` counts the payload's object itself."""
    match value:
        case str():
            return "\0" in value or any("\ud800" <= character <= "\udfff" for character in value)
        case bool() | None:
            return False
        case float():
            return not math.isfinite(value)
        case int():
            return not -(10**4299) < value < 10**4300  # 4,300 characters with the sign
        case list():
            return depth >= 64 or any(is_refusable(item, depth + 1) for item in value)
        case dict():
            return depth >= 64 or any(is_refusable(k) or is_refusable(v, depth + 1) for k, v in value.items())
        case _:
            raise AssertionError(value)


def inserted(own: Conn, client: Client, job: Job) -> list[str]:
    """The payload as the database gives it out, by INSERT and by COPY."""
    ids = [client.enqueue(job, own).id, *client.enqueue_many([job], own)]
    return [text for (text,) in own.execute("SELECT payload::text FROM tasuki.job WHERE id = any(%s)", (ids,))]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(VALUES | DEEP)
def test_any_value(own: Conn, value: Any) -> None:
    try:
        job = anything.job(value)
    except PayloadError as error:
        assert error.path.startswith("$.x")  # noqa: PT017  most values do not raise
        assert is_refusable(value)
        return
    assert not is_refusable(value)
    texts = inserted(own, Client(), job)
    assert len(texts) == 2
    for text in texts:
        assert is_same(anything.decode(text)["x"], value)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    real=st.floats(),
    whole=st.integers() | st.integers(-(10**60), 10**60),
    text=TEXT,
    raw=st.binary(),
    when=st.none() | st.datetimes(),
)
def test_values_of_declared_types_come_back_exactly(own: Conn, **arguments: Any) -> None:
    try:
        job = typed.job(**arguments)
    except PayloadError as error:
        assert error.path in {"$.real", "$.text"}  # noqa: PT017  most values do not raise
        assert is_refusable(arguments["real"]) or is_refusable(arguments["text"])
        return
    for text in inserted(own, Client(), job):
        decoded = typed.decode(text)
        assert decoded == arguments
        assert [type(value) for value in decoded.values()] == [type(value) for value in arguments.values()]


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,6})?", fullmatch=True) | st.integers(
    14_000, 17_000
).map(lambda digits: "0." + "0" * digits + "1")
TEXTS = (
    NUMBERS
    | st.text(st.characters(exclude_categories=[])).map(lambda text: json.dumps(text, ensure_ascii=False))
    | TEXT.map(json.dumps)
    | st.sampled_from(
        ['"\\x"', "nul", "[1,]", "01", "1.", "NaN", '"\n"', "1 2", '{"a":1,}', '"\\ud800\\u0041"', "[" * 70]
    )
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_text_that_passes_the_check_is_stored(own: Conn, text: str) -> None:
    line = f'{{"x":{text}}}'.encode("utf-8", "surrogatepass")
    try:
        check_text(line, limit=1 << 20)
    except FlawError:
        return
    (stored,) = own.execute("SELECT convert_from(%b, 'utf8')::jsonb", (line,)).fetchone() or (None,)
    assert stored is not None
