"""What a child does before anything else: tie its life to the supervisor's, and keep stray signals away from both.

Runs in the executor's initializer, before the application is imported, because none of it may depend on the
application behaving. `shield_forkserver` is its counterpart for the forkserver. Linux first: elsewhere the parent-death
guard is a watcher thread, which can do nothing while C code holds the GIL, and there is no subreaper, so processes that
a handler daemonises outlive its job.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import multiprocessing
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Final

SHIELDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What terminals, service managers and container runtimes send to whole groups: the supervisor's to answer, alone."""

OOM_SCORE_ADJ: Final = 500
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_forking: Final = threading.local()


def protect(*, nofile: int | None = None) -> None:
    """Make this process one that dies with its supervisor, at once, whatever it is doing then.

    Call it in a process that multiprocessing started, on its main thread. `nofile` is the soft limit of descriptors
    that user code gets; None leaves the one inherited. Afterwards the process leads a session and a process group of
    its own, adopts whatever its descendants orphan, and is the kernel's first choice when memory runs out.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("protect() belongs into a child of multiprocessing; this process has no parent to die with")
    if os.getsid(0) != os.getpid():
        os.setsid()
    # A sentinel is an integer wherever there are pipes; the stubs allow for Windows' handles.
    _die_with(int(parent.sentinel))
    become_subreaper()
    _disarm_signals()
    # By number: whatever fd 2 is made to point at later is where a crash is reported.
    faulthandler.enable(file=2)
    _be_oom_killed_first()
    if nofile is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = nofile if hard == resource.RLIM_INFINITY else min(nofile, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def held_back() -> Iterator[None]:
    """Meanwhile this thread, and whatever program it starts, is given none of the signals that go to whole groups.

    A program keeps that until it says otherwise, so they can't hit one that has not yet come to say what it does with
    them: the forkserver would leave a traceback, and no child could be started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
    try:
        # It answers neither hang-up nor quit, and its successor would complain about what only this one knows: so it
        # is to be started here, for the two to be held back from it for good. This lets the other two through again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_forkserver() -> None:
    """Let the forkserver outlive signals that go to the whole process group; without it no child can be started.

    Ignoring is right there, since it executes nothing. Children inherit it, which covers them until `protect` puts
    handlers in its place. In return it dies with the thread that started it, even in the middle of an import that never
    ends: by itself it would notice only after that.
    """
    for number in SHIELDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SHIELDED)  # what was held back until now is dropped
    if sys.platform == "linux":
        _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGKILL)


def become_subreaper() -> None:
    """Make this process the one that adopts its orphaned descendants, double-forked daemons included.

    So they stay below it, where they are found. Does nothing but on Linux.
    """
    if sys.platform != "linux":
        return
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def has_subreapers() -> bool:
    """Whether `become_subreaper` would work here; changes nothing."""
    if sys.platform != "linux":
        return False
    is_one = ctypes.c_int()
    return bool(ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(is_one), 0, 0, 0) == 0)


def _prctl(name: str, option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({name}): {os.strerror(error)}")


def _die_with(sentinel: int) -> None:
    """SIGKILL for this process group as soon as the other end of the pipe `sentinel` is closed.

    The kernel sends it, so it works while C code holds the GIL, which a watcher thread does not; and the parent-death
    signal is no use under forkserver, where the parent is not the supervisor. It costs nothing until then. The group
    holds this process's plain descendants too. Closing `sentinel` disarms it.
    """
    if sys.platform == "linux":
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        # The supervisor may have died before the guard stood: then no signal will come.
        poll = select.poll()
        poll.register(sentinel, select.POLLIN)
        if poll.poll(0):
            os.killpg(0, signal.SIGKILL)
    else:
        threading.Thread(target=_kill_at_end_of, args=(sentinel,), name="parent-death", daemon=True).start()


def _kill_at_end_of(sentinel: int) -> None:
    select.select([sentinel], [], [])
    os.killpg(0, signal.SIGKILL)


def _disarm_signals() -> None:
    """Handlers that do nothing, not SIG_IGN: programs that a handler starts would inherit that, and refuse to end."""
    # Whoever started the supervisor may have blocked signals; user code and its programs expect none.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in SHIELDED:
        signal.signal(number, _do_nothing)
    os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_rearm_signals)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _rearm_signals() -> None:
    """Python's own defaults in a process that a handler forks: `multiprocessing.Pool` ends its workers by SIGTERM."""
    for number in SHIELDED:
        if signal.getsignal(number) is _do_nothing:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release_signals()


# Around a fork signals are held, or one that comes before the new process has its defaults would be lost on it.


def _hold_signals() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SHIELDED)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _be_oom_killed_first() -> None:
    """Offer this process to the kernel before the supervisor when memory runs out.

    Best effort: a read-only or masked /proc is a reason to run without it, not to run no jobs.
    """
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        file.write_text(str(min(1000, int(file.read_text(encoding="ascii")) + OOM_SCORE_ADJ)), encoding="ascii")
