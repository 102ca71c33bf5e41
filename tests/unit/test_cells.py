"""CSV cells become what the signature says, or are refused with the column's name."""

from __future__ import annotations

import datetime as dt
import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from tasuki_mp import PayloadError, Tasuki
from tasuki_mp.cells import Columns

app = Tasuki()


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Box:
    x: int
    label: str = "none"


@app.handler
def typed(
    whole: int,
    text: str,
    real: float = 1.5,
    flag: bool = False,
    when: dt.datetime | None = None,
    sizes: list[int] | None = None,
    path: Path = Path("x"),
    colour: Colour = Colour.RED,
    small: Annotated[int, msgspec.Meta(le=9)] = 1,
    anything: Any = None,
) -> None: ...


@app.handler
def boxed(box: Box) -> None: ...


@app.handler
def nullable(a: int | None, b: str | None, c: str) -> None: ...


def convert(handler: Any, **cells: str) -> Any:
    columns = Columns(handler.name, handler.plan, list(cells), limit=1000)
    return json.loads(columns.payload(list(cells.values())))


def test_cells_are_converted_by_the_signature() -> None:
    assert convert(
        typed,
        text="1",
        whole="2",
        real="3",
        flag="true",
        when="2030-01-02T03:04:05+09:00",
        sizes="[4, 5]",
        path="a/b",
        colour="red",
        small="9",
        anything="6",
    ) == {
        "whole": 2,
        "text": "1",
        "real": 3.0,
        "flag": True,
        "when": "2030-01-02T03:04:05+09:00",
        "sizes": [4, 5],
        "path": "a/b",
        "colour": "red",
        "small": 9,
        "anything": "6",
    }
    assert convert(boxed, x="1", label="l") == {"x": 1, "label": "l"}


def test_an_empty_cell_is_the_default_or_null_or_an_empty_text() -> None:
    assert convert(typed, whole="1", text="", real="", when="", sizes="") == {"whole": 1, "text": ""}
    assert convert(nullable, a="", b="", c="") == {"a": None, "b": None, "c": ""}
    assert boxed.decode(json.dumps(convert(boxed, x="1", label="")))["box"] == Box(1)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"whole": "1.5", "text": ""}, r"\$\.whole: Expected `int`"),
        ({"whole": "", "text": ""}, r"\$\.whole: Expected `int`"),
        ({"whole": "1", "text": "", "real": "nan"}, r"\$\.real: nan has no place in JSON"),
        ({"whole": "1", "text": "", "sizes": "4;5"}, r"\$\.sizes: the cell of a column like this holds JSON"),
        ({"whole": "1", "text": "", "sizes": '["x"]'}, r"\$\.sizes\[0\]|\$\.sizes\[\.\.\.\]"),
        ({"whole": "1", "text": "", "small": "10"}, r"\$\.small: Expected `int` <= 9"),
        ({"whole": "1", "text": "\udcff"}, r"\$\.text: contains a lone surrogate"),
        ({"whole": "1", "text": "x" * 1000}, r"the limit is 1,000"),
        ({"whole": "1"}, r"\$\.text: no column has this name, and it has no default"),
        ({"whole": "1", "text": "", "widht": "1"}, r"\$\.widht: unexpected column; the payload has whole, text"),
    ],
)
def test_what_does_not_fit_is_named(cells: dict[str, str], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        convert(typed, **cells)


def test_a_row_has_a_cell_for_each_column_and_a_column_one_name() -> None:
    columns = Columns("nullable", nullable.plan, ["a", "b", "c"], limit=1000)
    with pytest.raises(PayloadError, match="has 2 cells, and the header 3"):
        columns.payload(["1", "2"])
    with pytest.raises(PayloadError, match=r"\$\.a: is a column twice"):
        Columns("nullable", nullable.plan, ["a", "b", "c", "a"], limit=1000)
