"""The process that a job finds, kept for the next one: a snapshot, and what puts it back.

`restore` is exact and follows every job: working directory, environment, umask, locale, decimal context, module path,
default socket timeout, recursion limit, garbage collection, a pending alarm. Together they take some 6 µs; what can be set
faster than it can be compared is simply set. `probe` costs ten times as much and may lag: signal handlers and mask, resource
limits, priority, cores. What can't be put back is a reason for a fresh child.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]  # what `signal` wraps: no enums to be made, a twentieth of the time
import decimal
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
import time
from typing import Final

from tasuki_mp import wire

_SIGNALS: Final = sorted(int(number) for number in signal.valid_signals())
_LIMITS: Final = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_ALL: Final = _locale.LC_ALL
_NOT_PYTHONS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, wire.SIGNAL_DUMP}
)
"""Signals that faulthandler answers below Python, which can't be seen from here: to set them would take that away."""


class Baseline:
    """What the process was like when `take` was last called."""

    def __init__(self) -> None:
        self._folder = -1
        self.take()

    def take(self) -> None:
        """From now on this is what every job finds: the application is imported, or a resource was built."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._environ = os.environ
        # Its encoded content: comparing that takes half a microsecond, and going through its methods two hundred times that.
        self._variables: dict[bytes, bytes] = dict(os.environ._data)  # type: ignore[attr-defined]  # private, in every CPython
        self._locale = _locale.setlocale(_ALL, None)
        self._decimal = decimal.getcontext().copy()
        self._path = sys.path
        self._entries = list(sys.path)
        self._socket_timeout = socket.getdefaulttimeout()
        self._recursion_limit = sys.getrecursionlimit()
        self._is_collecting = gc.isenabled()
        self._handlers = {number: _signal.getsignal(number) for number in _SIGNALS}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {number: resource.getrlimit(number) for number in _LIMITS}
        self._priority = os.getpriority(os.PRIO_PROCESS, 0)
        self._cores = os.sched_getaffinity(0)

    def restore(self) -> str:
        """Put back what must be exact after each job; why the child should retire if that fails, or an empty string."""
        try:
            os.fchdir(self._folder)
            os.umask(self._umask)
            if os.environ is not self._environ or os.environ._data != self._variables:  # type: ignore[attr-defined]  # as above
                self._restore_environment()
            if _locale.setlocale(_ALL, None) != self._locale:
                _locale.setlocale(_ALL, self._locale)
            decimal.setcontext(self._decimal.copy())
            if sys.path is not self._path or sys.path != self._entries:
                sys.path = self._path
                sys.path[:] = self._entries
            if socket.getdefaulttimeout() != self._socket_timeout:
                socket.setdefaulttimeout(self._socket_timeout)
            if sys.getrecursionlimit() != self._recursion_limit:
                sys.setrecursionlimit(self._recursion_limit)
            if gc.isenabled() != self._is_collecting:
                (gc.enable if self._is_collecting else gc.disable)()
            # It would end the next job's process.
            signal.alarm(0)
        except Exception as error:  # noqa: BLE001  a job can have put anything anywhere, and a fresh child is the answer to all of it
            return f"its job left a process that can't be cleaned up: {error!r}"
        return ""

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003  the very object, which does go through to the process
        found: dict[bytes, bytes] = dict(os.environ._data)  # type: ignore[attr-defined]  # as above
        for name in found.keys() - self._variables.keys():
            del os.environ[os.fsdecode(name)]
        for name, value in self._variables.items():
            if found.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)
        if found.get(b"TZ") != self._variables.get(b"TZ"):
            time.tzset()

    def probe(self) -> str:
        """Put back what may lag; why the child should retire if that can't be done, or an empty string."""
        try:
            return self._restore_signals() or self._restore_limits()
        except (OSError, ValueError, TypeError) as error:
            return f"its job left a process that can't be cleaned up: {error}"

    def _restore_signals(self) -> str:
        for number, wanted in self._handlers.items():
            # By identity: a handler may be an object whose comparison does anything.
            if (found := _signal.getsignal(number)) is wanted or (isinstance(found, int) and found == wanted):
                continue
            if wanted is None or number in _NOT_PYTHONS:
                return f"its job changed the handler of signal {number}"
            signal.signal(number, wanted)
        if not faulthandler.is_enabled():
            faulthandler.enable(file=2)
        if signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return ""

    def _restore_limits(self) -> str:
        for number, wanted in self._limits.items():
            if resource.getrlimit(number) != wanted:
                resource.setrlimit(number, wanted)
        if os.getpriority(os.PRIO_PROCESS, 0) != self._priority:
            os.setpriority(os.PRIO_PROCESS, 0, self._priority)
        if os.sched_getaffinity(0) != self._cores:
            os.sched_setaffinity(0, self._cores)
        return ""
