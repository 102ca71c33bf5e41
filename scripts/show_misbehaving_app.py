"""Twenty handlers that nobody should write, one that does it again and again, and an innocent one beside them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from tasuki_mp import Backoff, Tasuki

app = Tasuki()
_KEPT: list[Any] = []


@app.handler(queue="innocent")
def innocent(n: int) -> int:
    """Twenty milliseconds of arithmetic in a clean process."""
    problems = []
    if os.environ.get("DIRTY"):
        problems.append("environment")
    if os.getcwd() == "/":
        problems.append("working directory")
    if os.umask(0o022) == 0o777:
        problems.append("umask")
    if problems:
        raise RuntimeError(f"found somebody else's {', '.join(problems)}")
    end = time.monotonic() + 0.02
    while time.monotonic() < end:
        n += 1
    return n


@app.handler(timeout=1, max_attempts=1)
def hang_in_python() -> None:
    while True:
        pass


@app.handler(timeout=1, max_attempts=1)
def hang_in_c() -> None:
    sum(range(10**11))


@app.handler(timeout=1, max_attempts=1)
def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pass


@app.handler(timeout=1, max_attempts=1)
def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@app.handler(timeout=2, max_attempts=1)
def fork_bomb() -> None:
    """Fifty processes, each the parent of the next."""
    for _ in range(50):
        if os.fork():
            break
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


@app.handler(max_attempts=1)
def daemonise() -> str:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                signal.pause()
        os._exit(0)
    return "left a daemon"


@app.handler(max_attempts=1)
def leave_a_process() -> str:
    _KEPT.append(subprocess.Popen(["sleep", "600"]))
    return "left a process"


@app.handler(memory="300MiB", max_attempts=1)
def leak_memory() -> None:
    """A hundred megabytes a second."""
    while True:
        _KEPT.append(b"x" * 10_000_000)
        threading.Event().wait(0.1)


@app.handler(max_attempts=1)
def close_all() -> None:
    os.closerange(0, 1000)
    while True:
        pass


@app.handler(timeout=1, max_attempts=1)
def endless_output() -> None:
    while True:
        print("and on it goes")


@app.handler(max_attempts=1)
def dirty_everything() -> str:
    os.environ["DIRTY"] = "yes"
    os.chdir("/")
    os.umask(0o777)
    sys.path.insert(0, "/nowhere")
    return "left a mess"


@app.handler(max_attempts=1)
def change_signals() -> str:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    return "left signal handlers"


@app.handler(max_attempts=1)
def segfault() -> None:
    ctypes.string_at(0)


@app.handler(max_attempts=20, backoff=Backoff(factor=0))
def pill() -> None:
    """Again and again, as often as it may."""
    ctypes.string_at(0)


@app.handler(max_attempts=1)
def exit_at_once() -> None:
    os._exit(3)


@app.handler(max_attempts=1)
def system_exit() -> None:
    sys.exit("bye")


@app.handler(max_attempts=1)
def return_nonsense() -> Any:
    return object()


class UnspeakableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)

    def __str__(self) -> str:
        raise RuntimeError("no words")


@app.handler(max_attempts=1)
def raise_the_unspeakable() -> None:
    raise UnspeakableError(1, 2)


@app.handler(max_attempts=1)
def leak_threads() -> str:
    for _ in range(40):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    time.sleep(0.02)  # noqa: TID251  a short job is not looked at closely
    return "left 40 threads"


@app.handler(max_attempts=1)
def leak_descriptors() -> str:
    _KEPT.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(200))
    time.sleep(0.02)  # noqa: TID251  the same
    return "left 200 descriptors"


@app.handler(max_attempts=1)
def eat_itself() -> None:
    """Kill the own process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
