"""The copy of the program without batches: what it takes out must be there to be taken out."""

from __future__ import annotations

import compileall
from pathlib import Path

import pytest

from scripts import without_batches


def test_the_copy_is_a_program_without_them(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    without_batches.make(copy)
    assert compileall.compile_dir(copy / "tasuki_mp", quiet=1)
    statements = [(copy / name).read_text() for name in (without_batches.LEASE, without_batches.FINISH)]
    assert not any(
        word in text for word in ("followed as", "waiter", "max_running", "unique_key") for text in statements
    )
    assert "f_ids" not in (copy / without_batches.WORK).read_text()
    assert without_batches.DROPPED in [file.read_text() for file in (copy / "tasuki_mp/sql/migrations").glob("*.sql")]


def test_a_program_that_reads_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_batches, "REPLACED", ((without_batches.LEASE, "no such words", ""),))
    with pytest.raises(ValueError, match=r"lease\.sql has not once, but 0 times: 'no such words'"):
        without_batches.make(tmp_path / "copy")
