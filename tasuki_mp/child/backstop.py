"""The kernel's timer behind a job's timeout: kills this process if the supervisor, frozen or overloaded, did not.

A POSIX timer of its own with SIGKILL: whatever a job does with SIGALRM, with signal masks and handlers, the two do not
meet, and neither C code nor a stopped process outlives it. Not inherited by processes that the job forks.
"""

from __future__ import annotations

import ctypes
import signal
import time
from typing import Any, Final

_SIGEV_SIGNAL: Final = 0


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * (64 - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int))),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


class Backstop:
    """One timer, made when it is first needed. Where the system has none, jobs run without it."""

    def __init__(self) -> None:
        self._settime: Any = None
        self._timer: ctypes.c_void_p | None = None
        self._is_available = True

    def arm(self, seconds: float) -> None:
        """Kill this process after so many seconds, suspend included."""
        if self._timer is None:
            if not self._is_available:
                return
            self._is_available = self._create()
        if self._timer is not None:
            whole = int(seconds)
            self._set(_TimerSpec(first_s=whole, first_ns=int((seconds - whole) * 1e9) or 1))

    def disarm(self) -> None:
        """Let it live."""
        if self._timer is not None:
            self._set(_TimerSpec())

    def _create(self) -> bool:
        # In glibc before 2.34 they are in a library of their own.
        for name in (None, "librt.so.1"):
            try:
                library = ctypes.CDLL(name, use_errno=True)
                create, self._settime = library.timer_create, library.timer_settime
            except (OSError, AttributeError):
                continue
            timer = ctypes.c_void_p()
            event = _SigEvent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
            clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
            if create(ctypes.c_int(clock), ctypes.byref(event), ctypes.byref(timer)) == 0:
                self._timer = timer
                return True
        return False

    def _set(self, spec: _TimerSpec) -> None:
        if self._settime(self._timer, 0, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timer_settime")
