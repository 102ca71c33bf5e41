"""Which files the demo works on."""

from __future__ import annotations

import os
import stat
import sysconfig
from pathlib import Path
from typing import Final

_SKIPPED: Final = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules", ".git", ".venv", "venv"})


def stdlib_folder() -> Path:
    """Where this interpreter's standard library is, its tests included where they are installed."""
    return Path(sysconfig.get_path("stdlib"))


def find_sources(folder: Path) -> list[Path]:
    """Every regular .py file below `folder` by its path, installed packages left out.

    A name that is no UTF-8 can't stand in a payload and is left out as well.
    """
    found = []
    for where, folders, names in os.walk(folder.resolve()):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in names:
            path = Path(where, name)
            if name.endswith(".py") and _is_text(str(path)) and stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
    return sorted(found)


def warm_up(paths: list[Path]) -> None:
    """Read every file once, so that neither measurement is the one that waits for the disk."""
    for path in paths:
        try:
            path.read_bytes()
        except OSError:  # the job that reads it will say so
            continue


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
