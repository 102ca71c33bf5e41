"""Where the private folders of jobs are kept: one folder of this supervisor, in the system's place for temporary files.

Its children make a folder of their own in it, named after their pid, when a job first asks for one. The folder is locked as
long as this process lives, so that the next supervisor of this user can tell which of them are left over.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

from tasuki_mp import logs
from tasuki_mp.child import scratch

_PREFIX: Final = "tasuki-mp-"
_LOCK: Final = "lock"
_UNLOCKED_FOR: Final = 3600.0
"""Seconds after which a folder without a lock belongs to nobody."""


class Attic:
    """`path` is empty when no temporary folder can be had, which is said once; then jobs get none."""

    def __init__(self) -> None:
        self.path = ""
        self._lock = -1

    def open(self) -> None:
        """Make it."""
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getuid()}-"))
            # Locked before it has its name: whoever finds a lock that nobody holds takes the folder for left over.
            unnamed = folder / f"{_LOCK}.new"
            self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(folder / _LOCK)
            # As multiprocessing.util.get_temp_dir reads it, in every Python; there is no public way to say it.
            multiprocessing.current_process()._config.setdefault("tempdir", str(folder))  # type: ignore[attr-defined]
            self.path = str(folder)
        except OSError as error:
            logs.event(logging.WARNING, "no temporary folder, ctx.tmpdir will fail", error=str(error))

    def remove_orphans(self) -> None:
        """Remove what supervisors of this user left that are gone. Belongs into a worker thread."""
        if self.path:
            for folder in Path(self.path).parent.glob(f"{_PREFIX}{os.getuid()}-*"):
                if _is_orphan(folder):
                    scratch.remove(folder)

    def clear_after(self, pid: int) -> None:
        """That child is dead: remove what its last job left. Belongs into a worker thread."""
        if self.path and (folder := Path(self.path, str(pid))).exists():
            scratch.remove(folder)

    def close(self) -> None:
        """Every child is dead: remove it all."""
        if self.path:
            scratch.remove(Path(self.path))
            os.close(self._lock)
            multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
            self.path = ""


def _is_orphan(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            return False
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Being made, or being removed, by somebody who may have been killed in the midst of it.
        return folder.exists() and time.time() - found.st_mtime > _UNLOCKED_FOR
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
