"""What option values may look like."""

from __future__ import annotations

import pytest

from tasuki_mp.options import parse_address, parse_duration, parse_modules, parse_queues, parse_slot_env


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("60s", 60),
        ("2h", 7200),
        ("1m30s", 90),
        ("1h 2m", 3720),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("1d", 86_400),
        ("2w", 1_209_600),
        ("90", 90),
        ("0", 0),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "1x", "1s1s", "1,5s", "1e3", "nan", "inf", True, None, [], "٣s", "9999999d", -1]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"duration|must lie"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "queues"),
    [
        ("a", (("a", 1),)),
        ("a,b=3", (("a", 1), ("b", 3))),
        (["a", "b=3"], (("a", 1), ("b", 3))),
        (("a, b",), (("a", 1), ("b", 1))),
        ({"a": 1, "b": 3}, (("a", 1), ("b", 3))),
    ],
)
def test_queues(value: object, queues: object) -> None:
    assert parse_queues(value) == queues


@pytest.mark.parametrize(
    "value",
    ["", [], "a b", "a;drop", "a\nb", "a=0", "a=-1", "a=1001", "a=x", "a=²", "a,a", [1], 3, "x" * 58, {"a": "y"}],
)
def test_what_is_no_queue(value: object) -> None:
    with pytest.raises(ValueError, match="queue"):
        parse_queues(value)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104  # parsed, not bound
        (":9100", ("127.0.0.1", 9100)),
        ("9100", ("127.0.0.1", 9100)),
        (9100, ("127.0.0.1", 9100)),
        ("[::1]:9100", ("::1", 9100)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses(value: object, address: tuple[str, int]) -> None:
    assert parse_address(value) == address


@pytest.mark.parametrize("value", ["", "host", "host:", "host:x", "host:65536", "::1:9100", "host:-1", None, True])
def test_what_is_no_address(value: object) -> None:
    with pytest.raises(ValueError, match=r"address|brackets"):
        parse_address(value)


@pytest.mark.parametrize(
    ("value", "modules"),
    [
        (True, ()),
        ("true", ()),
        (False, None),
        ("off", None),
        ("a.b", ("a.b",)),
        (["a", "b.c", "a"], ("a", "b.c")),
        ("a, b", ("a", "b")),
    ],
)
def test_modules_to_preload(value: object, modules: tuple[str, ...] | None) -> None:
    assert parse_modules(value) == modules


@pytest.mark.parametrize("value", ["", "a b", "a..b", "a:b", "a,", 3, [1], ["a", True], None])
def test_what_is_no_list_of_modules(value: object) -> None:
    with pytest.raises(ValueError, match="module"):
        parse_modules(value)


@pytest.mark.parametrize(
    ("value", "variables"),
    [
        ("GPU=0,1", (("GPU", ("0", "1")),)),
        ("GPU=0,1;2,3", (("GPU", ("0,1", "2,3")),)),
        ("GPU=0,1 PORT=8000,8001", (("GPU", ("0", "1")), ("PORT", ("8000", "8001")))),
        (["GPU=0,1", "NAME=a b,c=d"], (("GPU", ("0", "1")), ("NAME", ("a b", "c=d")))),
        ({"GPU": [0, 1], "PORT": "8000,8001"}, (("GPU", ("0", "1")), ("PORT", ("8000", "8001")))),
    ],
)
def test_variables_of_slots(value: object, variables: object) -> None:
    assert parse_slot_env(value) == variables


@pytest.mark.parametrize(
    "value", ["", "GPU", "GPU=", "=1", "1A=2", "GPU=0,,1", ["GPU=0", "GPU=1"], [], 7, {}, {"G": [""]}]
)
def test_what_are_no_variables_of_slots(value: object) -> None:
    with pytest.raises(ValueError, match=r"variable|value|twice"):
        parse_slot_env(value)
