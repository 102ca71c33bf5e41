"""Setting up and starting the embedded PostgreSQL's cluster. Everything here happens under the lock for starting."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg
from psycopg import pq

from tasuki_mp.embedded import watch
from tasuki_mp.embedded.place import MAJOR, Owner
from tasuki_mp.errors import EmbeddedError

_NAME: Final = "tasuki"
_PORT: Final = 5432  # only part of the socket's name: nothing listens on the network
_SOCKET: Final = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_LIMIT: Final = 107
_UNREACHABLE_AFTER: Final = 10.0
"""Seconds a server may live without a socket before it is replaced."""


def exists(folder: Path) -> bool:
    """Whether the cluster was set up. Raises EmbeddedError if this PostgreSQL can't use it."""
    version = folder / "data" / "PG_VERSION"
    if not version.exists():
        return False
    found = version.read_text().strip()
    if found != str(MAJOR):
        raise EmbeddedError(
            f"{folder} holds a database of PostgreSQL {found}, but PostgreSQL {MAJOR} is installed: "
            f"move the folder away to begin anew, or dump it with the older version and load it into the new one"
        )
    if not (folder / "password").exists():
        raise EmbeddedError(f"{folder}/password is missing: put it back, or move {folder} away to begin anew")
    return True


def create(binaries: Path, folder: Path, owner: Owner, *, fsync: bool) -> None:
    """Set up the cluster, with a password of its own."""
    # Renamed when complete: a set-up that was interrupted leaves no half cluster behind.
    unfinished = folder / "data.unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    owner.give(unfinished)
    password = folder / "password"
    password.unlink(missing_ok=True)
    password.touch(mode=0o600, exist_ok=False)
    password.write_text(secrets.token_urlsafe(24) + "\n")
    owner.give(password)
    done = owner.run(
        [
            binaries / "bin" / "initdb",
            f"--pgdata={unfinished}",
            f"--username={_NAME}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The builtin locale is there on every system, however few locales it has.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *([] if fsync else ["--no-sync"]),
        ],
        cwd=folder,
    )
    if done.returncode:
        raise EmbeddedError(f"the embedded PostgreSQL could not be set up in {folder}:\n{done.stdout.strip()}")
    unfinished.rename(folder / "data")


def socket_folder(folder: Path, owner: Owner) -> Path:
    """The folder for the socket, which only the server's user can enter: in `folder` if the path is short enough."""
    own = folder / "socket"
    if len(os.fsencode(own / _SOCKET)) <= _SOCKET_PATH_LIMIT:
        if not own.exists():
            own.mkdir(mode=0o700)
            owner.give(own)
        return own
    # The last one if possible, so that whoever used a server that was restarted finds it again.
    note = folder / watch.SOCKET_NOTE
    if note.exists() and _is_usable(last := Path(note.read_text()), owner):
        return last
    temporary = tempfile.gettempdir()
    if len(os.fsencode(temporary)) > 64:
        temporary = "/tmp"  # noqa: S108 -- mkdtemp makes a private folder in it
    made = Path(tempfile.mkdtemp(prefix="tasuki-mp-", dir=temporary))
    owner.give(made)
    note.write_text(str(made))
    return made


def _is_usable(last: Path, owner: Owner) -> bool:
    """Whether the folder of an earlier socket is still, or again, ours alone."""
    try:
        last.mkdir(mode=0o700)
        owner.give(last)
    except FileExistsError:
        found = last.lstat()
        return found.st_mode == stat.S_IFDIR | 0o700 and found.st_uid == owner.uid
    except FileNotFoundError:
        return False
    return True


def dsn(folder: Path, sockets: Path, database: str = _NAME) -> str:
    """How to connect. The password is in it, because PGPASSWORD in the environment would win over a password file."""
    password = (folder / "password").read_text().strip()
    return f"postgresql://{_NAME}:{password}@/{database}?host={quote(str(sockets), safe='')}&port={_PORT}"


def answers(folder: Path, address: str, *, timeout: float) -> bool:
    """Whether the server runs. One that is starting is waited for, one that can't be reached is stopped."""
    pidfd = watch.open_server(folder / "data")
    if pidfd is None:
        return False
    begin = time.monotonic()
    try:
        while (said := _ping(address)) is not pq.Ping.OK:
            if watch.wait_gone(pidfd, 0.1):
                return False
            waited = time.monotonic() - begin
            if said is pq.Ping.REJECT:
                if waited >= timeout:
                    raise EmbeddedError(f"the embedded PostgreSQL in {folder} is not ready after {timeout:.0f} s")
            elif waited >= _UNREACHABLE_AFTER:
                watch.stop(pidfd)
                return False
        return True
    finally:
        os.close(pidfd)


def _ping(address: str) -> pq.Ping:
    return pq.Ping(pq.PGconn.ping(f"{address}&connect_timeout=5".encode()))


def start_server(
    binaries: Path, folder: Path, owner: Owner, sockets: Path, settings: Mapping[str, str], *, timeout: float
) -> None:
    """Start the server, which must not run, and wait until it accepts connections."""
    _clear_away(folder, sockets)
    doubled = {name: value.replace("'", "''") for name, value in settings.items()}
    lines = [f"{name} = '{value}'" for name, value in doubled.items()]
    # Beside the cluster, not in it: root must not write where the server's user could have put a link.
    config = folder / "tasuki.conf"
    config.write_text("\n".join(["include 'data/postgresql.conf'", *lines, ""]))
    owner.give(config)
    log = folder / "server.log"
    log.write_text("")  # what an earlier server said does not explain this one
    owner.give(log)
    # Relative names: pg_ctl pastes them into a shell command.
    where = ["-D", "data", "-o", "-c config_file=tasuki.conf", "-l", "server.log"]
    wait = ["-s", "-w", "-t", str(max(1, round(timeout)))]
    done = owner.run([binaries / "bin" / "pg_ctl", "start", *where, *wait], cwd=folder)
    if done.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        raise EmbeddedError(f"the embedded PostgreSQL in {folder} did not start:\n{done.stdout.strip()}\n{said}")


def base_settings(sockets: Path, *, fsync: bool) -> dict[str, str]:
    """What the server is always told."""
    quoted = str(sockets).replace('"', '""')
    unsafe = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    return {
        "listen_addresses": "",
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "port": str(_PORT),
        "max_connections": "200",
        "shared_buffers": "128MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
        "log_line_prefix": "%m [%p] %a ",
        **({} if fsync else unsafe),
    }


def _clear_away(folder: Path, sockets: Path) -> None:
    """What a killed server left: its processes, and a pid file that may by now name an innocent process.

    PostgreSQL refuses to start while the process named in that file lives.
    """
    data = folder / "data"
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and watch.is_server_process(int(entry.name), data):
            # An orphaned backend can't do anything useful any more, but keeps the shared memory.
            pidfd = os.pidfd_open(int(entry.name))
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                watch.wait_gone(pidfd, 5)
            finally:
                os.close(pidfd)
    (data / "postmaster.pid").unlink(missing_ok=True)
    for name in (_SOCKET, f"{_SOCKET}.lock"):
        (sockets / name).unlink(missing_ok=True)


def ensure_database(folder: Path, sockets: Path) -> None:
    """Make the database that `dsn` names, the first time."""
    try:
        with psycopg.connect(dsn(folder, sockets, "postgres"), autocommit=True, connect_timeout=10) as conn:
            if not conn.execute("SELECT FROM pg_database WHERE datname = %s", (_NAME,)).rowcount:
                conn.execute("CREATE DATABASE tasuki")
    except psycopg.Error as error:
        raise EmbeddedError(f"the embedded PostgreSQL in {folder} refuses its owner: {error}") from error
