"""An application whose handlers change their process, and one that tells what it finds: `tests.support.dirty:app`."""

from __future__ import annotations

import contextvars
import decimal
import gc
import io
import locale
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasuki_mp import Context, Tasuki

app = Tasuki()
COLOUR = contextvars.ContextVar("COLOUR", default="none")


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "gone"


def _look() -> dict[str, Any]:
    context = decimal.getcontext()
    mask = os.umask(0)
    os.umask(mask)
    return {
        "folder": _folder(),
        "environment": dict(os.environ),
        "zone": time.tzname[0],
        "umask": mask,
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": [context.prec, context.rounding, context.traps[decimal.Inexact], context.flags[decimal.Inexact]],
        "path": list(sys.path),
        "timeout": socket.getdefaulttimeout(),
        "recursion": sys.getrecursionlimit(),
        "gc": gc.isenabled(),
        "alarm": signal.alarm(0),
        "colour": COLOUR.get(),
        "streams": [f"{type(stream).__name__} {id(stream)}" for stream in (sys.stdout, sys.stderr)],
        "descriptors": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "limits": [resource.getrlimit(number) for number in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)],
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
    }


@app.handler(max_attempts=1)
def look() -> dict[str, Any]:
    """What a job finds."""
    return {"pid": os.getpid(), "found": _look()}


def _lower() -> None:
    for which in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
        soft, hard = resource.getrlimit(which)
        soft = min(soft if soft >= 0 else 1 << 20, 1 << 20) // 2
        resource.setrlimit(which, (soft, hard))


def _move(zone: str) -> None:
    os.environ["TZ"] = zone
    time.tzset()


def _unset() -> None:
    for name in list(os.environ):
        del os.environ[name]


def _leave() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


def _close() -> None:
    os.closerange(0, 3)


EXACT: dict[str, Callable[[], object]] = {
    "working directory": lambda: os.chdir("/"),
    "working directory that is gone": _leave,
    "environment, more": lambda: os.environ.update(LANG="xx", ADDED="1"),
    "environment, less": _unset,
    "environment, another": lambda: setattr(os, "environ", {"ONLY": "this"}),
    "time zone": lambda: _move("Asia/Tokyo"),
    "umask": lambda: os.umask(0o777),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "decimal context": lambda: setattr(decimal.getcontext(), "prec", 3),
    "decimal flags": lambda: decimal.Decimal(1) / 3,
    "decimal context, another": lambda: decimal.setcontext(decimal.Context(prec=2, traps=[decimal.Inexact])),
    "module path": lambda: sys.path.insert(0, "/nowhere"),
    "module path, another": lambda: setattr(sys, "path", []),
    "socket timeout": lambda: socket.setdefaulttimeout(1.5),
    "recursion limit": lambda: sys.setrecursionlimit(5000),
    "garbage collection": gc.disable,
    "alarm": lambda: signal.alarm(1000),
    "context variable": lambda: COLOUR.set("red"),
    "streams": lambda: vars(sys).update(stdout=io.StringIO(), stderr=io.StringIO()),
    "descriptors": _close,
}
"""Put back before the next job, whenever that is."""

LAGGING: dict[str, Callable[[], object]] = {
    "signal handlers": lambda: [signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGUSR1)],
    "signals ignored": lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGCHLD)],
    "signal mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    "resource limits": _lower,
    "cores": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "priority": lambda: os.nice(5),
}
"""Put back, by whatever child, a little later or after a job that took its time."""


@app.handler(max_attempts=1)
def change(what: str) -> int:
    """Change the process; take so long that it is looked at."""
    {**EXACT, **LAGGING}[what]()
    if what in LAGGING:
        _take_time()
    return os.getpid()


@app.handler(max_attempts=1)
def changed(what: str) -> dict[str, Any]:
    """What changing it changes, seen by the job that did it."""
    before = _look()
    EXACT.get(what, LAGGING.get(what, lambda: None))()
    after = _look()
    return {name: after[name] for name in after if after[name] != before[name]}


def _take_time() -> None:
    threading.Event().wait(0.02)


@app.handler(max_attempts=1)
def take_segv() -> int:
    """Take a signal that is not the job's to take."""
    signal.signal(signal.SIGSEGV, signal.SIG_IGN)
    _take_time()
    return os.getpid()


@app.handler(max_attempts=1)
def break_the_loop() -> None:
    """Make the child's own code fail, as an interpreter in trouble would."""
    import tasuki_mp.child.tidy

    def fail(*_: object, **__: object) -> str:
        raise OSError("no more files")

    tasuki_mp.child.tidy.Tidiness.verdict = fail  # type: ignore[method-assign]


@app.resource
def setting() -> str:
    """A resource may change the process: that is what every later job finds."""
    os.environ["SET_BY_RESOURCE"] = "yes"
    return "yes"


@app.handler(max_attempts=1)
def with_setting(setting: str) -> str | None:
    return os.environ.get("SET_BY_RESOURCE")


@app.handler(max_attempts=1)
def scratch(end: str, ctx: Context) -> str:
    """Fill the job's private folder, in ways that are hard to remove, and end so."""
    folder = ctx.tmpdir
    assert folder == ctx.tmpdir
    assert folder.stat().st_mode & 0o777 == 0o700
    closed = folder / "deep" / "closed"
    closed.mkdir(parents=True)
    (closed / "file").write_text("x")
    closed.chmod(0)
    (folder / "deep").chmod(0o500)
    (folder / "link").symlink_to(Path(__file__).parent)
    print(folder, flush=True)
    match end:
        case "return":
            return str(folder)
        case "raise":
            raise ValueError(str(folder))
        case "wait":
            threading.Event().wait()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""
