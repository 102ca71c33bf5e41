"""What reaches a running handler from outside: `SoftTimeout` and `Canceled` raised in it, and a look at its stack.

The supervisor writes on the shared page which lease is meant and why, then sends a signal. Its Python handler runs on the
main thread between two bytecodes, never while C code holds the interpreter, and raises only where the stack shows that the
user's function of that very lease is being executed. The dump of the stacks works in C as well: another signal has
faulthandler write them into a file in memory that nothing else writes to. Of an event loop that waits they show nothing of
the handler, so the first signal can also ask for its tasks, which go into that file too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import os
import signal
import time
from collections.abc import Callable, Coroutine, Generator
from ctypes import Array, c_uint64
from types import FrameType
from typing import Any, Final

import msgspec

from tasuki_mp import wire
from tasuki_mp.child.awaits import awaits
from tasuki_mp.child.describe import MESSAGE_LIMIT, clip, describe
from tasuki_mp.errors import Canceled, SoftTimeout
from tasuki_mp.outcome import CancelObeyed, ErrorKind, Interrupted, Outcome, Raised

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_MOST_CAUSES: Final = 100


class Interrupts:
    """One per child. `call` and `call_async` are the only places where a handler's function is entered."""

    def __init__(self, page: Array[c_uint64]) -> None:
        self._page = page
        self._job: wire.RunJob | None = None
        self._raised: list[BaseException] = []
        self._main: asyncio.Task[Any] | None = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._thrown: BaseException | None = None
        """Waits to be raised at the await where an async handler stands."""
        self.stacks = os.memfd_create("tasuki-mp-stacks", os.MFD_CLOEXEC)
        # The supervisor empties it before each dump.
        fcntl.fcntl(self.stacks, fcntl.F_SETFL, fcntl.fcntl(self.stacks, fcntl.F_GETFL) | os.O_APPEND)
        faulthandler.register(wire.SIGNAL_DUMP, file=self.stacks, all_threads=True, chain=False)
        signal.signal(wire.SIGNAL_INTERRUPT, self._signalled)

    # ── the way into a handler ────────────────────────────────────────────────────────────────────────────────────────

    def call(self, job: wire.RunJob, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What the function returns, unless an interrupt ends it."""
        self._job = job
        return function(**arguments)

    def call_async(
        self, job: wire.RunJob, function: Callable[..., Coroutine[Any, Any, Any]], arguments: dict[str, Any]
    ) -> Any:
        """What the coroutine function returns, on an event loop of its own."""
        self._job = job
        self._thrown = None
        self._coroutine = function(**arguments)
        try:
            return asyncio.run(self._steered(self._coroutine))
        finally:
            self._main = self._coroutine = None

    async def _steered(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._main = asyncio.current_task()
        return await _Steered(self, coroutine)

    # ── what became of it ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def retire(self) -> str:
        """Why this child should take no further job: whatever was interrupted half-way is of no use to another one."""
        return f"{type(self._raised[0]).__name__} was raised in its job" if self._raised else ""

    def _cause(self, error: BaseException) -> BaseException | None:
        """The interrupt that `error` is, or comes from: its cause, its context, part of its group."""
        if not self._raised:
            return None
        left, seen = [error], 0
        while left and seen < _MOST_CAUSES:
            found = left.pop()
            seen += 1
            if any(found is raised for raised in self._raised):
                return found
            if isinstance(found, BaseExceptionGroup):
                left.extend(found.exceptions)
            left.extend(other for other in (found.__context__, found.__cause__) if other is not None)
        return None

    def outcome(self, error: BaseException, job: wire.RunJob, started_ns: int) -> Outcome | None:
        """How the attempt ended, if `error` is the answer to a request to stop; None if it is the handler's own."""
        cause = self._cause(error)
        if isinstance(cause, SoftTimeout):
            ran_for = time.clock_gettime_ns(_CLOCK) - started_ns
            info = describe(error)
            message = f"ran for {ran_for / 1e9:.3g} s; {cause}"
            if error is not cause:
                message = clip(f"{message}; then {info.type}: {info.message}", MESSAGE_LIMIT)
            return Raised(msgspec.structs.replace(info, kind=ErrorKind.TIMEOUT, message=message))
        if isinstance(cause, Canceled):
            return CancelObeyed()
        if isinstance(error, Canceled):  # the handler's own answer to ctx.should_stop
            reasons = self._page[wire.PAGE_STOP]
            if reasons & wire.STOP_CANCEL and self._is_meant(job):
                return CancelObeyed()
            if reasons & wire.STOP_SHUTDOWN:
                return Interrupted()
        return None

    # ── the signal ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _signalled(self, _number: int, frame: FrameType | None) -> None:
        """On the main thread, wherever that is: raise what the page asks for if that is in the user's code.

        If it is not, nothing happens, and the supervisor comes back.
        """
        if self._page[wire.PAGE_ASK] != self._page[wire.PAGE_TOLD]:
            self._tell_awaits()
        bit = self._wanted()
        if not bit:
            return
        if _is_in_users_code(frame):
            self._raise(bit)
        elif self._main is not None and not self._main.done():
            self._interrupt_loop(self._main, bit)

    def _tell_awaits(self) -> None:
        asked = self._page[wire.PAGE_ASK]
        if self._main is not None and self._coroutine is not None:
            try:
                text = awaits(self._main, self._coroutine)
            except Exception as error:  # noqa: BLE001  a look at the handler's tasks must not raise in its code
                text = f"(its tasks can't be listed: {type(error).__name__})\n"
            os.write(self.stacks, b"\n" + text.encode("utf-8", "backslashreplace"))
        self._page[wire.PAGE_TOLD] = asked

    def _wanted(self) -> int:
        """The weightiest reason on the page that is meant for the running job and was not raised yet."""
        page = self._page
        reasons = page[wire.PAGE_STOP] & ~page[wire.PAGE_INTERRUPTED]
        # Whoever has been canceled and tidies up is not disturbed by the soft timeout.
        if self._job is None or not self._is_meant(self._job) or page[wire.PAGE_INTERRUPTED] & wire.STOP_CANCEL:
            return 0
        return wire.STOP_CANCEL if reasons & wire.STOP_CANCEL else reasons & wire.STOP_TIMEOUT

    def _is_meant(self, job: wire.RunJob) -> bool:
        page = self._page
        return (page[wire.PAGE_STOP_JOB], page[wire.PAGE_STOP_LEASE_NO]) == (job.id, job.lease_no)

    def _error(self, bit: int) -> BaseException:
        if bit == wire.STOP_CANCEL:
            return Canceled("somebody asked to cancel this job")
        extras = self._job.extras if self._job is not None else None
        limit = extras.limits.soft_timeout if extras is not None else None
        return SoftTimeout("its soft timeout is over" if limit is None else f"its soft timeout is {limit:g} s")

    def _raise(self, bit: int) -> None:
        error = self._error(bit)
        self.note(error)
        raise error

    def note(self, error: BaseException) -> None:
        """This is being raised now: the supervisor need not ask again."""
        self._raised.append(error)
        self._page[wire.PAGE_INTERRUPTED] |= wire.STOP_CANCEL if isinstance(error, Canceled) else wire.STOP_TIMEOUT

    # ── async handlers ────────────────────────────────────────────────────────────────────────────────────────────────

    def _interrupt_loop(self, main: asyncio.Task[Any], bit: int) -> None:
        """The loop waits, or runs something else of the handler's than its own coroutine."""
        loop = main.get_loop()
        if self._thrown is None:
            self._thrown = self._error(bit)
            loop.call_soon_threadsafe(main.cancel)
        elif loop.is_running() and asyncio.current_task(loop) not in (main, None):
            # The last request has not got through: one of the handler's other tasks keeps the loop from turning.
            error, self._thrown = self._thrown, None
            self.note(error)
            raise error

    def take_thrown(self) -> BaseException | None:
        """What should be raised in the place of the cancellation that has just come, if it was ours."""
        error, self._thrown = self._thrown, None
        if error is not None and self._main is not None:
            self._main.uncancel()
            self.note(error)
        return error


class _Steered:
    """Awaits a coroutine step by step, so that any exception can be raised where it stands, not only cancellation."""

    def __init__(self, interrupts: Interrupts, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._interrupts = interrupts
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value
            value = error = None
            try:
                value = yield waits_for
            except asyncio.CancelledError as cancelled:
                error = self._interrupts.take_thrown() or cancelled
            except BaseException as raised:  # noqa: BLE001  whatever it is, it belongs into the coroutine
                error = raised


_ENTRANCES: Final = frozenset({Interrupts.call.__code__, _Steered.__await__.__code__})


def _is_in_users_code(frame: FrameType | None) -> bool:
    """Whether that frame is below a handler's function, and an exception raised there would get up to it."""
    if frame is None or frame.f_code in _ENTRANCES:
        return False
    while frame is not None:
        if frame.f_code in _ENTRANCES:
            return True
        if frame.f_code.co_name == "__del__":  # what is raised in a destructor is printed and lost
            return False
        frame = frame.f_back
    return False
