"""Private folders of jobs: below a folder of the child, below one of the supervisor, which removes what a death leaves."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path


class Scratch:
    """Makes a folder when a job asks for it and removes it when that job has ended."""

    def __init__(self, root: str) -> None:
        self._home = Path(root, str(os.getpid())) if root else None
        self._folder: Path | None = None

    def folder(self, job_id: int, lease_no: int) -> Path:
        """The running job's folder, which is its own and empty at first. Raises OSError if none can be made."""
        if self._folder is None:
            if self._home is None:
                raise OSError(
                    "there is no folder for temporary files; set TMPDIR for the supervisor to one it may write to"
                )
            self._home.mkdir(mode=0o700, exist_ok=True)
            folder = self._home / f"job-{job_id}-{lease_no}"
            folder.mkdir(mode=0o700)
            # Whatever the umask says.
            folder.chmod(0o700)
            self._folder = folder
        return self._folder

    def clear(self) -> None:
        """The job has ended."""
        if self._folder is not None:
            remove(self._folder)
            self._folder = None


def remove(folder: Path) -> None:
    """Remove a folder and everything in it, closed folders included; links are not followed. What is left then, is left."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        return
    _open_up(folder)
    for place, folders, _ in os.walk(folder):
        for name in folders:
            _open_up(Path(place, name))
    shutil.rmtree(folder, ignore_errors=True)


def _open_up(folder: Path) -> None:
    try:
        if stat.S_ISDIR(folder.lstat().st_mode):
            folder.chmod(0o700)
    except OSError:  # gone, or somebody else's: the removal will show
        return
