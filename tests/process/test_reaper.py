"""What a dead child leaves behind is adopted by the supervisor, and the reaper ends it; nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import leaks
from tests.support.program import Program
from tests.support.shapes import CHAIN

# Stands in for a supervisor. Its children are its own here, but adoption does not ask whose child a dead process was.
# Lines: "child DIES SHAPE…" starts a child that makes shapes and dies, waits for it, and prints its pid;
# "sweep" prints what the reaper killed and what is left; "know PID…" tells the reaper of pids.
SUPERVISOR = """
import json, os, signal, subprocess, sys
from tasuki_mp.child.guard import become_subreaper
from tasuki_mp.supervisor import tree
from tasuki_mp.supervisor.reaper import Reaper
from tests.support.shapes import SHAPES

known = set()
reaper = Reaper(lambda: set(known))
helper = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
ended_helper = subprocess.Popen(["true"])
os.waitid(os.P_PID, ended_helper.pid, os.WEXITED | os.WNOWAIT)
print(helper.pid, ended_helper.pid, flush=True)
for line in sys.stdin:
    match line.split():
        case ["child", how, *shapes]:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                become_subreaper()
                for shape in shapes:
                    SHAPES[shape]()
                if how == "lives":
                    print(os.getpid(), flush=True)
                    signal.pause()
                os.kill(os.getpid(), int(how))
            if how != "lives":
                os.waitpid(pid, 0)
                print(pid, flush=True)
        case ["sweep"]:
            killed = reaper.sweep()
            print(json.dumps({"killed": killed, "left": tree.children(os.getpid())}), flush=True)
        case ["know", *pids]:
            known = set(map(int, pids))
        case ["helper"]:
            print(ended_helper.wait(), helper.poll(), flush=True)
"""


@pytest.fixture
def supervisor() -> Iterator[Program]:
    with Program("-c", SUPERVISOR, leaves_behind=True) as program:
        yield program


@pytest.fixture
def helpers(supervisor: Program) -> list[int]:
    """Processes that the supervisor started itself: one that lives, and one that has ended and is not waited for."""
    return [int(pid) for pid in supervisor.words()]


def sweep(supervisor: Program) -> dict[str, Any]:
    supervisor.say("sweep")
    answer: dict[str, Any] = json.loads(supervisor.line())
    return answer


def child(supervisor: Program, how: str, *shapes: str) -> int:
    supervisor.say(" ".join(("child", how, *shapes)))
    return int(supervisor.line())


@pytest.mark.parametrize(
    ("shape", "signal"),
    [("plain", "9"), ("plain", "11"), ("plain", "6"), ("deaf", "9"), ("daemon", "9"), ("chain", "9")],
)
def test_what_a_crashed_child_leaves_behind_is_killed_and_reaped(
    supervisor: Program, helpers: list[int], shape: str, signal: str
) -> None:
    child(supervisor, signal, shape)
    assert len(leaks.tagged(supervisor.tag)) == 2 + (CHAIN if shape == "chain" else 1)

    swept = sweep(supervisor)

    assert len(swept["killed"]) == 1
    assert sorted(swept["left"]) == sorted(helpers)
    assert {leak.pid for leak in leaks.tagged(supervisor.tag)} == {supervisor.pid, helpers[0]}


def test_several_children_at_once(supervisor: Program, helpers: list[int]) -> None:
    for _ in range(3):
        child(supervisor, "9", "plain", "daemon", "chain", "deaf")

    swept = sweep(supervisor)

    assert len(swept["killed"]) == 3 * 4
    assert sorted(swept["left"]) == sorted(helpers)


def test_nothing_to_do(supervisor: Program, helpers: list[int]) -> None:
    assert sweep(supervisor) == {"killed": [], "left": helpers}


def test_children_known_to_be_in_a_slot_are_left_alone(supervisor: Program, helpers: list[int]) -> None:
    pid = child(supervisor, "lives", "plain", "daemon")
    supervisor.say(f"know {pid}")

    assert sweep(supervisor) == {"killed": [], "left": [*helpers, pid]}
    assert len(leaks.tagged(supervisor.tag)) == 5

    supervisor.say("know")
    assert sweep(supervisor) == {"killed": [pid], "left": helpers}


def test_processes_that_the_supervisor_started_are_left_to_whoever_waits_for_them(
    supervisor: Program, helpers: list[int]
) -> None:
    child(supervisor, "9", "plain")
    sweep(supervisor)

    supervisor.say("helper")
    assert supervisor.words() == ["0", "None"]
