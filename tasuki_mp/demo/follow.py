"""Runs one program, shows what it says, and hands it the signals that were meant for both.

The program gets a process group of its own, so that a terminal's Ctrl-C reaches this process alone, which passes it on
once: the stages of a supervisor's stopping count the signals they get.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

_TICK: Final = 0.2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying of them, while its `with` lasts. For the main thread."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.waker, self._wakeup = socket.socketpair()
        """`waker` becomes readable when one has come."""

    def __enter__(self) -> Self:
        self.waker.setblocking(False)
        self._wakeup.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._old_handlers = [(number, signal.signal(number, self._note)) for number in _SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._old_handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self.waker.close()
        self._wakeup.close()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received.append(signal.Signals(number))


def follow(
    command: Sequence[str | os.PathLike[str]],
    *,
    signals: Signals,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    on_signal: Callable[[int], None] = lambda _: None,
) -> int:
    """Run the program to its end; its exit status as `subprocess` has it.

    `on_line` gets each line of its output, `on_tick` is called five times a second, `on_signal` gets the number of
    signals so far whenever one was passed on. Whatever any of them raises ends the program.
    """
    with (
        _started(command, environ) as (process, output),
        selectors.DefaultSelector() as selector,
    ):
        _feed(process, stdin)
        selector.register(output, selectors.EVENT_READ)
        selector.register(signals.waker, selectors.EVENT_READ)
        passed_on, rest, is_open = 0, b"", True
        while is_open:
            # Asked before looking for output: what a dead program wrote is all there by then.
            is_dead = process.poll() is not None
            ready = {key.fd for key, _ in selector.select(0 if is_dead else _TICK)}
            if signals.waker.fileno() in ready:
                signals.waker.recv(4096)
            for number in signals.received[passed_on:]:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
                passed_on += 1
                on_signal(passed_on)
            if output in ready:
                chunk = os.read(output, 65_536)
                is_open = bool(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace"))
            elif is_dead:
                break  # if its output is still open, then in the hands of something that it started
            on_tick()
        if rest:
            on_line(rest.decode(errors="replace"))
        return process.wait()


@contextmanager
def _started(
    command: Sequence[str | os.PathLike[str]], environ: Mapping[str, str] | None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The running program and the descriptor that its output comes from; killed if it is left running."""
    output, its_output = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=its_output,
                stderr=its_output,
                env=environ,
                process_group=0,
            )
        finally:
            os.close(its_output)
        with process:
            try:
                yield process, output
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        os.close(output)


def _feed(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    if process.stdin is None:
        raise ValueError("the program was started without a pipe to its input")
    try:
        process.stdin.write(stdin)
        process.stdin.close()
    except BrokenPipeError:  # it ended before it read this; its exit status says why
        return
