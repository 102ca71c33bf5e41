"""Lines of a file: none lost, none torn, each with its number, whatever the blocks are that it is read in."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasuki_mp import ConfigError
from tasuki_mp.cli import lines as module
from tasuki_mp.cli.lines import Format, Line, Source, lines, opened


class Trickle(io.BytesIO):
    """A pipe: gives what is there, a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(self._most if size is None or size < 0 else min(size, self._most))


def read(data: bytes, form: Format = "jsonl", most: int = 3) -> list[Line]:
    return list(lines(Source("it", form, Trickle(data, most), None, lambda: 0)))


@given(st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line)), st.booleans(), st.integers(1, 20))
def test_lines_are_those_of_the_file(raw: list[bytes], is_ended: bool, most: int) -> None:
    data = b"\n".join(raw) + (b"\n" if is_ended else b"")
    wanted = [(n, line) for n, line in enumerate(data.split(b"\n"), 1) if line and not line.isspace()]
    if wanted and data.startswith(b"\xef\xbb\xbf"):
        return
    assert [(line.number, line.raw) for line in read(data, most=most)] == wanted


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert [line.raw for line in read(b"\xef\xbb\xbf{}\r\n{}", most=100)] == [b"{}\r", b"{}"]


def test_a_line_without_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 10)
    found = read(b"a" * 1000 + b"\nb\n" + b"c" * 1000)
    assert [(line.number, len(line.raw) < 20, line.flaw is None) for line in found] == [
        (1, True, False),
        (2, True, True),
        (3, True, False),
    ]


def test_a_csv_record_may_have_several_lines() -> None:
    found = read(b'a,b\r\n1,"x\ny"\n\n2,z', "csv")
    assert [(line.number, line.cells) for line in found] == [(1, ["a", "b"]), (2, ["1", "x\ny"]), (5, ["2", "z"])]
    assert found[1].raw == b'1,"x\ny"'


def test_broken_csv_is_one_bad_line() -> None:
    found = read(b'a,b\n"1"x,2\n3,4\n"5', "csv")
    assert [(line.number, line.cells, line.flaw is None) for line in found] == [
        (1, ["a", "b"], True),
        (2, None, False),
        (3, ["3", "4"], True),
        (4, None, False),
    ]


def test_what_is_no_utf8_is_kept_as_it_is() -> None:
    assert read(b"a\n\xff\n", "csv")[1] == Line(2, b"\xff", ["\udcff"])


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.jsonl", "jsonl"), ("a.csv", "csv"), ("a.CSV.gz", "csv"), ("a.txt.gz", "jsonl"), ("a", "jsonl")],
)
def test_the_name_says_what_it_is(tmp_path: Path, name: str, form: Format) -> None:
    data = b"x\ny\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with opened(str(tmp_path / name), None) as source:
        assert source.format == form
        assert [line.raw for line in lines(source)] == [b"x", b"y"]
        assert source.position() == source.size


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-5]])
def test_a_gzip_file_that_is_none_or_cut_off(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gz").write_bytes(data)
    with opened(str(tmp_path / "a.gz"), None) as source, pytest.raises(ConfigError, match="no whole gzip file"):
        list(lines(source))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"can.t read .*nothing: No such file"),
        opened(str(tmp_path / "nothing"), None),
    ):
        pass
