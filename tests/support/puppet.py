"""An application that behaves as badly as it is told to: `tests.support.puppet:app`.

A `puppet` job comes to the door like `tests.support.door`'s `hold`, and performs; the other handlers misbehave by themselves.
"""

from __future__ import annotations

import json
import math
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NoReturn

from tasuki_mp import Backoff, Context, Retry, Tasuki, wire
from tasuki_mp.outcome import Returned
from tests.support.shapes import SHAPES

app = Tasuki()

_kept: list[object] = []
AT_ONCE = Backoff(factor=0)


# ── what a puppet can be told ─────────────────────────────────────────────────────────────────────────────────────────


def fork(shape: str) -> None:
    """Leave processes of this shape behind."""
    SHAPES[shape]()


def leak_threads(count: str) -> None:
    """Start threads that never end."""
    for _ in range(int(count)):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def leak_descriptors(count: str) -> None:
    """Open files and keep them."""
    _kept.extend(open(os.devnull, "rb") for _ in range(int(count)))  # noqa: SIM115  that is what leaking is


def eat(mib: str) -> None:
    """Hold that much memory, and write to all of it."""
    _kept.append(b"x" * (int(mib) << 20))


def eat_below(mib: str) -> None:
    """Have that much memory held by a process of its own."""
    code = f"kept = b'x' * ({mib} << 20); print(flush=True); import threading; threading.Event().wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    _kept.append(process)


def map_file(mib: str) -> None:
    """Have that much of a file in memory: what the kernel can drop."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        for _ in range(int(mib)):
            file.write(b"x" * (1 << 20))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        _kept.append((mapped, sum(mapped[::4096])))


def fork_readers(count: str) -> None:
    """Fork processes that share all memory with this one."""
    for _ in range(int(count)):
        if os.fork() == 0:
            threading.Event().wait()


def close_standard() -> None:
    """Close descriptors 0, 1 and 2."""
    os.closerange(0, 3)


def deafen() -> None:
    """Ignore every signal that can be ignored."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def close_all() -> NoReturn:
    """Close every descriptor, and go on in C for ever."""
    os.closerange(0, 1000)
    burn()


def _send(packet: bytes) -> None:
    """Send that to the supervisor, as if it were an outcome."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.type == socket.SOCK_SEQPACKET:
                    sock.send(packet)
        except OSError:
            continue  # no socket, or not connected any more


def babble() -> NoReturn:
    """Send what is no frame to the supervisor, and go on in C for ever."""
    _send(b"Fgarbage")
    burn()


def die_in_mid_frame(part: str) -> None:
    """Be killed when that much of an outcome is sent: its "half", or the "header" of one whose body was to follow."""
    outcome = wire.pack(wire.Finished(1, 1, Returned('"half done"'), 1, 2, wire.Used(1, 1, 1, 1), 0))
    _send({"half": outcome[: len(outcome) // 2], "header": b"L"}[part])
    os.kill(os.getpid(), signal.SIGKILL)


def burn() -> NoReturn:
    """Hold the interpreter in C."""
    sum(range(10**13))
    raise AssertionError


def hang() -> NoReturn:
    """Wait for what never comes."""
    threading.Event().wait()
    raise AssertionError


def kill(number: str) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), int(number))


_COMES_BACK: dict[str, Callable[..., None]] = {
    act.__name__: act
    for act in (
        fork,
        leak_threads,
        leak_descriptors,
        eat,
        eat_below,
        map_file,
        fork_readers,
        close_standard,
        deafen,
        print,
    )
}
_DOES_NOT: dict[str, Callable[..., object]] = {
    "exit": lambda code: os._exit(int(code)),
    **{act.__name__: act for act in (close_all, babble, die_in_mid_frame, burn, hang, kill)},
}


@app.handler(max_attempts=5, backoff=AT_ONCE, cancel_grace=0.2)
def puppet(door: str, ctx: Context) -> str:
    """Come to the door and perform: what comes back answers "done" when it is done, what does not says so before."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(door)
        me = {"pid": os.getpid(), "job": ctx.job_id, "lease_no": ctx.lease_no, "attempt": ctx.attempt}
        sock.sendall(json.dumps(me).encode() + b"\n")
        lines = sock.makefile("r", encoding="utf-8")
        while order := lines.readline().split():
            match order:
                case ["return", *words]:
                    return " ".join(words)
                case ["raise", *words]:
                    raise ValueError(" ".join(words))
                case [act, *words] if act in _COMES_BACK:
                    _COMES_BACK[act](*words)
                    sock.sendall(b"done\n")
                case [act, *words]:
                    sock.sendall(b"done\n")
                    _DOES_NOT[act](*words)
    raise RuntimeError("the test went away")


# ── ends of their own making ──────────────────────────────────────────────────────────────────────────────────────────


@app.handler(max_attempts=3, on_memory=Retry(0, memory="x2"))
def grow(mib: int, ctx: Context) -> None:
    """Take that much; the first time, hold it until somebody does something about it."""
    eat(str(mib))
    if ctx.attempt == 1:
        hang()


@app.handler
def touch(mib: int) -> None:
    """Take that much and give it back."""
    assert len(b"x" * (mib << 20)) == mib << 20


@app.handler
def work_below(seconds: float) -> None:
    """Burn CPU time in a program of its own."""
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


@app.handler(max_attempts=1)
def run_out() -> None:
    """Ask for more memory than the process may have."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.RLIM_INFINITY))
    bytearray(8 << 30)


@app.handler
def pid() -> int:
    """Which child ran this."""
    return os.getpid()


@app.handler(max_attempts=20, backoff=AT_ONCE)
def pill() -> None:
    """Kill the process, every time."""
    os.kill(os.getpid(), signal.SIGSEGV)


@app.handler(max_attempts=20, max_crashes=10, backoff=AT_ONCE)
def large_pill(door: str, ctx: Context) -> str:
    """What may kill its process more often, when it is told to at the door."""
    return puppet.function(door, ctx)


@app.handler
def recurse(depth: int = 0) -> list[Any]:
    """Recurse through C until its stack is used up, or the interpreter sees it coming."""
    sys.setrecursionlimit(10**9)
    return list(map(recurse.function, [depth + 1]))


@app.handler
def give(what: str) -> Any:
    """Return something that can't be stored."""
    cyclic: list[object] = []
    cyclic.append(cyclic)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    return {
        "NaN": math.nan,
        "infinity": [{"x": -math.inf}],
        "object": object(),
        "cycle": cyclic,
        "depth": deep,
        "size": "x" * (2 << 20),
        "surrogate": "\ud800",
        "NUL": {"a\0b": "c\0d"},
    }[what]


class TwoArguments(Exception):  # noqa: N818  the names are the tests' words
    """Can't be unpickled: its `args` don't fit its constructor."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no text today")

    __repr__ = __str__


class Base(BaseException):
    """Not even an Exception."""


def _loop() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "two arguments": lambda: TwoArguments(1, 2),
    "unprintable": Unprintable,
    "holds a lock": lambda: ValueError(threading.Lock()),
    "huge": lambda: ValueError("x" * 100_000_000),
    "NUL and surrogate": lambda: ValueError("a\0b\ud800c"),
    "loop": _loop,
    "group": lambda: ExceptionGroup("several", [ValueError(number) for number in range(1000)]),
    "base": lambda: Base("odd"),
    "system exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop iteration": lambda: StopIteration(1),
    "memory": lambda: MemoryError("no more"),
}


@app.handler(max_attempts=1)
def throw(what: str) -> None:
    """Raise one of `EXCEPTIONS`."""
    error = EXCEPTIONS[what]()
    raise error


@app.handler
def exit_politely() -> None:
    """As a script ends."""
    sys.exit("done with it")


# ── processes of their own, put away properly ─────────────────────────────────────────────────────────────────────────


@app.handler(max_attempts=1)
def use_pool(kind: str, method: str) -> list[int]:
    """Square numbers in a pool of processes."""
    context = multiprocessing.get_context(method)
    if kind == "executor":
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            return list(executor.map(abs, range(-3, 1)))
    with context.Pool(2) as pool:  # whose end is a SIGTERM
        return pool.map(abs, range(-3, 1))


@app.handler(max_attempts=1)
def use_subprocess() -> str:
    """Run programs, one of which is ended by a signal."""
    sleeper = subprocess.Popen(["sleep", "1000"])
    sleeper.terminate()
    code = sleeper.wait()
    return subprocess.run(["echo", str(code)], capture_output=True, text=True, check=True).stdout.strip()


@app.resource
def daemon() -> Iterator[int]:
    """A helper process that lives as long as its child."""
    helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    yield helper.pid
    helper.kill()
    helper.wait()


@app.handler
def use_daemon(daemon: int) -> list[int]:
    """Pids: this child's and its helper's."""
    return [os.getpid(), daemon]


# ── that tell on themselves ───────────────────────────────────────────────────────────────────────────────────────────


@app.handler(backoff=AT_ONCE)
def mark(journal: str, failures: int = 0, *, ctx: Context) -> int:
    """Write down that this attempt was made; the first ones fail."""
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{ctx.job_id} {ctx.attempt}\n".encode())
    os.close(fd)
    if ctx.attempt <= failures:
        raise ValueError("not yet")
    return ctx.attempt
