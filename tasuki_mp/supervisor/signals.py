"""The two signals that children answer: one to look at their page, one to write down their stacks. Linux only.

Sent through pidfds, and only to a process that has a handler for them: by default they kill.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from typing import Final

from tasuki_mp import wire
from tasuki_mp.supervisor.child import Child

DUMP_SECONDS: Final = 2.0
"""What a child has for writing its stacks. It takes a millisecond, once the child gets hold of a core."""
AWAITS_SECONDS: Final = 0.5
"""What a child whose event loop waits has for writing where its tasks do. It takes a millisecond as well."""
LONGEST_STACK: Final = 64 * 1024
_HAS_LOOP: Final = re.compile(rb'/tasuki_mp/child/interrupts\.py", line \d+ in call_async$', re.MULTILINE)
_LOOK_AGAIN_MS: Final = 1
_ENTRANCE: Final = re.compile(r'/tasuki_mp/child/interrupts\.py", line \d+ in (call|__await__)$')


class NoStackError(Exception):
    """The process did not write its stack; the text says why."""


def interrupt(child: Child) -> None:
    """Have the child look at its page now, and raise in its handler what stands there, if it can."""
    if _is_set(_status(f"/proc/{child.pid}/status"), b"SigCgt", wire.SIGNAL_INTERRUPT):
        # Dead, or so many signals wait that there is room for no other: whoever asks comes back.
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(child.pidfd, wire.SIGNAL_INTERRUPT)


def stack_of(child: Child) -> str:
    """Where every thread of the child is: Python frames, the innermost first. In a worker thread, one at a time.

    Of an async handler that waits, also where its tasks do, if Python runs in the child at all.

    Raises NoStackError.
    """
    try:
        pidfd, file = os.dup(child.pidfd), os.dup(child.stacks)  # the slot closes its own when the child is buried
    except OSError:
        raise NoStackError("its process has ended") from None
    try:
        dump = _dump(child.pid, pidfd, file)
        if _HAS_LOOP.search(dump):
            child.ask_for_awaits()
            interrupt(child)
            deadline = time.monotonic() + AWAITS_SECONDS
            while not child.has_told_awaits and not _has_ended(pidfd) and time.monotonic() < deadline:
                continue
            dump = os.pread(file, LONGEST_STACK, 0)
        return readable(dump)
    finally:
        os.close(pidfd)
        os.close(file)


def _dump(pid: int, pidfd: int, file: int) -> bytes:
    status = _status(f"/proc/{pid}/status")
    if status.get(b"State", b"X")[:1] in b"Tt":
        raise NoStackError("its process is stopped (SIGSTOP), so it can't say where it is")
    if not _is_set(status, b"SigCgt", wire.SIGNAL_DUMP):
        raise NoStackError("its process has ended, or its handler has taken away the signal that dumps the stack")
    os.ftruncate(file, 0)
    deaf = {thread for thread, blocks in _threads(pid).items() if blocks}
    try:
        signal.pidfd_send_signal(pidfd, wire.SIGNAL_DUMP)
    except OSError as error:
        raise NoStackError(f"its process could not be asked: {error.strerror}") from error
    deadline = time.monotonic() + DUMP_SECONDS
    while time.monotonic() < deadline:
        # While the dump is written, the thread that writes it has the signal blocked; nothing else tells its end.
        if os.fstat(file).st_size and not any(blocks for thread, blocks in _threads(pid).items() if thread not in deaf):
            return os.pread(file, LONGEST_STACK, 0)
        if _has_ended(pidfd):
            raise NoStackError("its process has ended")
    raise NoStackError(f"its process wrote no stack within {DUMP_SECONDS:g} s")


def readable(dump: bytes) -> str:
    """A dump without the frames below a handler, which are ours and the same for every job."""
    lines: list[str] = []
    is_below = False
    for line in dump.decode("utf-8", "backslashreplace").splitlines():
        if not line.startswith("  "):
            is_below = False
        elif _ENTRANCE.search(line):
            is_below = True
        if not is_below:
            lines.append(line)
    return "\n".join(lines).strip()


def _threads(pid: int) -> dict[int, bool]:
    """For each thread, whether it has the signal blocked, or waiting."""
    found: dict[int, bool] = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/task"):
            status = _status(f"/proc/{pid}/task/{name}/status")
            found[int(name)] = _is_set(status, b"SigBlk", wire.SIGNAL_DUMP)
            found[0] = _is_set(status, b"ShdPnd", wire.SIGNAL_DUMP)
    return found


def _status(path: str) -> dict[bytes, bytes]:
    """The fields of a `status` file in /proc; none if its process is gone."""
    try:
        with open(path, "rb") as file:
            pairs = (line.partition(b":") for line in file)
            return {name: value.strip() for name, _, value in pairs}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _is_set(status: dict[bytes, bytes], mask: bytes, number: int) -> bool:
    return bool(int(status.get(mask, b"0"), 16) >> (number - 1) & 1)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(_LOOK_AGAIN_MS))
