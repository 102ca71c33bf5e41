"""The shapes in which a handler can leave processes behind. Each call returns when they are in place."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

CHAIN = 50
LONGEST_RUN = 20_000


def plain() -> None:
    """A process as `subprocess` or `multiprocessing` make it."""
    _start(_stay)


def deaf() -> None:
    """One that ignores every signal it can."""

    def child(ready: Callable[[], None]) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        _stay(ready)

    _start(child)


def daemon() -> None:
    """One that daemonised itself: a session of its own, its parent gone."""

    def child(ready: Callable[[], None]) -> NoReturn:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _stay(ready)

    os.waitpid(_start(child), 0)


def group() -> None:
    """One in a process group of its own, as shells start them: it is set going again when its parent dies."""

    def child(ready: Callable[[], None]) -> NoReturn:
        os.setpgid(0, 0)
        signal.signal(signal.SIGHUP, lambda *_: os.fork())
        _stay(ready)

    _start(child)


def chain() -> None:
    """Fifty, each the parent of the next."""

    def child(ready: Callable[[], None]) -> NoReturn:
        for _ in range(CHAIN - 1):
            if os.fork():
                _stay(lambda: None)
        _stay(ready)

    _start(child)


def runner() -> None:
    """One that forks and exits, again and again, so that no pid of it is good for long."""

    def child(ready: Callable[[], None]) -> NoReturn:
        ready()
        for _ in range(LONGEST_RUN):
            if os.fork():
                os._exit(0)
        os._exit(0)

    _start(child)


SHAPES = {shape.__name__: shape for shape in (plain, deaf, daemon, group, chain, runner)}


def _start(child: Callable[[Callable[[], None]], NoReturn]) -> int:
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(read_end)
            child(lambda: os.close(write_end) if os.write(write_end, b"!") else None)
        finally:
            os._exit(70)
    os.close(write_end)
    if os.read(read_end, 1) != b"!":
        raise RuntimeError(f"{child} did not come about")
    os.close(read_end)
    return pid


def _stay(ready: Callable[[], None]) -> NoReturn:
    ready()
    while True:
        signal.pause()
