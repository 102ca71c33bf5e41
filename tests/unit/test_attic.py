"""The supervisor's temporary folder: nobody else removes it while it is in use, and it is removed when it is not."""

from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from tasuki_mp.supervisor.attic import Attic


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_that_another_one_is_making_is_not_taken_for_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = Attic(), Attic()
    older.open()
    flock = fcntl.flock
    looked = []

    def interrupted(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        older.remove_orphans()
        looked.append(fd)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    newer.open()
    assert looked
    assert Path(newer.path).is_dir()
    older.remove_orphans()
    assert Path(newer.path).is_dir()
    newer.close()
    older.close()


def test_a_folder_whose_supervisor_was_killed_is_removed(temporary: Path) -> None:
    others = temporary / "others"
    others.mkdir()
    killed, next_one = Attic(), Attic()
    killed.open()
    fcntl.flock(killed._lock, fcntl.LOCK_UN)
    next_one.open()
    next_one.remove_orphans()
    assert not Path(killed.path).exists()
    assert Path(next_one.path).is_dir()
    assert others.is_dir()
    killed.close()
    next_one.close()
    assert list(temporary.iterdir()) == [others]
