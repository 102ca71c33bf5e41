"""A virtual environment for each peer, made at its first use and kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_COMPLETE: Final = "complete"


class MissingError(Exception):
    """A peer can't be measured on this machine; the text says what to install."""


def cache_folder() -> Path:
    """Where the environments are, by the XDG rules."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tasuki-mp" / "bench"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The folder of programs of an environment with exactly these requirements."""
    wanted = "\n".join([platform.python_version(), *requirements])
    folder = cache_folder() / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _COMPLETE).exists():
            _make(name, folder, requirements)
    return folder / "bin"


def _make(name: str, folder: Path, requirements: Sequence[str]) -> None:
    print(f"making a virtual environment with {', '.join(requirements)} in {folder}", file=sys.stderr, flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install"]
    for command in ([sys.executable, "-m", "venv", folder], [*pip, *requirements]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise MissingError(f"{name} could not be installed from PyPI ({last}); its row needs the package index")
    (folder / _COMPLETE).touch()
