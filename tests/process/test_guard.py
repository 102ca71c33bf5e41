"""What binds a child to its supervisor, and shields both from stray signals."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasuki_mp.child import guard
from tests.support import leaks
from tests.support.program import Program
from tests.support.stand_in import NOFILE
from tests.support.waiting import wait_gone

AT_ONCE = 0.1
"""Seconds within which everything is gone after the supervisor."""


@pytest.fixture
def supervisor() -> Iterator[Program]:
    with stand_in() as program:
        yield program


def stand_in(*arguments: str) -> Program:
    program = Program("-m", "tests.support.stand_in", *arguments, new_session=True)
    assert program.line() == "ready"
    return program


def ask(supervisor: Program, name: str) -> list[str]:
    """What each of the two children answers."""
    supervisor.say(name)
    return [supervisor.line(), supervisor.line()]


@pytest.mark.speed
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_children_that_burn_cpu_in_c_die_with_their_supervisor(end: str) -> None:
    seconds = []
    # The best of up to ten: somebody else's work on this machine can delay any one of them.
    while not seconds or (min(seconds) >= AT_ONCE and len(seconds) < 10):
        with stand_in() as supervisor:
            ask(supervisor, "pids")
            burning = [int(pid) for line in ask(supervisor, "burn") for pid in line.split()]
            assert len({leak.pid for leak in leaks.tagged(supervisor.tag)} & set(burning)) == 4

            if end == "killed":
                supervisor.kill()
            else:
                supervisor.say("exit")  # which takes its time, above all when it is measured
                supervisor.wait()
            began = time.monotonic()
            for pid in burning:
                wait_gone(pid)
            seconds.append(time.monotonic() - began)
    assert min(seconds) < AT_ONCE


def test_a_supervisor_that_died_before_the_guard_stood_takes_the_child_along(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # Open at both ends, so that nobody waits in opening it.
    with gate.open("r+b", buffering=0) as opener, stand_in(str(gate)) as supervisor:
        supervisor.say("pids")
        waiting = {int(supervisor.words()[-1]) for _ in range(2)}

        supervisor.kill()
        assert waiting <= {leak.pid for leak in leaks.tagged(supervisor.tag)}
        opener.write(b"!!")

        for pid in waiting:
            wait_gone(pid)
        with pytest.raises(AssertionError, match="closed its output"):
            supervisor.line()


def test_what_the_guard_makes_of_a_child(supervisor: Program) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii"))

    for answer in ask(supervisor, "state"):
        assert json.loads(answer) == {
            "is_leader": True,
            "is_subreaper": True,
            "has_faulthandler": True,
            "oom_score_adj": min(1000, own + guard.OOM_SCORE_ADJ),
            "nofile": NOFILE,
        }


def test_children_take_no_notice_of_signals(supervisor: Program) -> None:
    before = ask(supervisor, "pids")

    assert ask(supervisor, "bombard") == ["unharmed"] * 2
    assert ask(supervisor, "pids") == before


def test_a_signal_to_the_whole_group_leaves_forkserver_and_children(supervisor: Program) -> None:
    before = ask(supervisor, "pids")
    (forkserver,) = {int(answer.split()[1]) for answer in before}
    assert os.getpgid(forkserver) == supervisor.pid

    for number in guard.SHIELDED:
        os.kill(forkserver, number)
    for pid in (int(answer.split()[0]) for answer in before):
        for number in guard.SHIELDED:
            os.kill(pid, number)

    assert ask(supervisor, "pids") == before
    assert forkserver in {leak.pid for leak in leaks.tagged(supervisor.tag)}


def test_programs_that_a_child_starts_can_be_ended_by_signals(supervisor: Program) -> None:
    harmless = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1  # subprocess gives these two back by itself
    harmless |= 1 << 32 - 1 | 1 << 33 - 1  # glibc's own: ignored below whoever used posix_spawn, as make does

    for answer in ask(supervisor, "inherited"):
        blocked, ignored = (int(mask, 16) for mask in answer.split())
        assert blocked == 0
        assert ignored & ~harmless == 0


def test_processes_that_a_child_forks_can_be_terminated(supervisor: Program) -> None:
    assert ask(supervisor, "terminate_fork") == [str(-signal.SIGTERM)] * 2


def test_the_guard_belongs_into_children() -> None:
    with pytest.raises(RuntimeError, match="no parent to die with"):
        guard.protect()
