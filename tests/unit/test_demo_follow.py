"""The demo's way of running a program: its lines, its end, and signals that are passed on once."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tasuki_mp.demo.follow import Signals, follow


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def test_lines_of_both_streams_and_the_exit_status_come_back() -> None:
    lines: list[str] = []
    program = python("import os; os.write(1, b'one\\ntw'); os.write(2, b'o\\nthree'); os._exit(7)")
    with Signals() as signals:
        assert follow(program, signals=signals, on_line=lines.append) == 7
    assert lines == ["one", "two", "three"]


def test_input_arrives_whole() -> None:
    lines: list[str] = []
    program = python("import sys; print(len(sys.stdin.buffer.read()))")
    with Signals() as signals:
        assert follow(program, signals=signals, stdin=b"x" * 1_000_000, on_line=lines.append) == 0
    assert lines == ["1000000"]


def test_a_program_that_reads_no_input_is_fine() -> None:
    with Signals() as signals:
        status = follow(python("pass"), signals=signals, stdin=b"x" * 1_000_000, on_line=lambda _: None)
    assert status == 0


NAMES_SIGNALS = """
import signal
both = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
print("ready", flush=True)
for _ in range(3):
    print(signal.Signals(signal.sigwait(both)).name, flush=True)
"""


def test_each_signal_is_passed_on_once_and_counted() -> None:
    lines: list[str] = []
    counted: list[int] = []
    send = [signal.SIGINT, signal.SIGHUP, signal.SIGTERM]

    def on_line(line: str) -> None:
        lines.append(line)
        if send:
            os.kill(os.getpid(), send.pop(0))

    with Signals() as signals:
        status = follow(python(NAMES_SIGNALS), signals=signals, on_line=on_line, on_signal=counted.append)
    assert status == 0
    assert lines == ["ready", "SIGINT", "SIGTERM", "SIGTERM"]
    assert counted == [1, 2, 3]


def test_terminal_signals_reach_only_this_process() -> None:
    lines: list[str] = []
    with Signals() as signals:
        follow(python("import os; print(os.getpgid(0) == os.getpid())"), signals=signals, on_line=lines.append)
    assert lines == ["True"]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failing_callback_ends_the_program() -> None:
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line))
        raise LookupError

    program = python("import os, signal; print(os.getpid(), flush=True); signal.pause()")
    with Signals() as signals, pytest.raises(LookupError):
        follow(program, signals=signals, on_line=on_line)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_end_is_noticed_even_if_a_grandchild_keeps_the_output_open() -> None:
    lines: list[str] = []
    program = python("import subprocess, sys; print(subprocess.Popen(['sleep', '1000']).pid)")
    with Signals() as signals:
        assert follow(program, signals=signals, on_line=lines.append) == 0
    os.kill(int(lines[0]), signal.SIGKILL)
