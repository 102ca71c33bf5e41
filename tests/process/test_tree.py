"""Killing trees: every shape, moving targets, reused pids, and what is not to be touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasuki_mp.supervisor import tree
from tests.support import leaks
from tests.support.program import Program
from tests.support.shapes import CHAIN, SHAPES
from tests.support.waiting import wait_gone, wait_until

# Stands in for a slot's child: leads a session, is a subreaper, builds the shapes it is told to, then burns CPU in C.
CHILD = """
import os, sys
from tasuki_mp.child.guard import become_subreaper
from tests.support.shapes import SHAPES
os.setsid()
become_subreaper()
for name in sys.argv[1:]:
    SHAPES[name]()
print("ready", flush=True)
sum(range(10**12))
"""


@contextmanager
def child_with(*shapes: str, leaves_behind: bool = False) -> Iterator[Program]:
    with Program("-c", CHILD, *shapes, leaves_behind=leaves_behind) as child:
        assert child.line() == "ready"
        yield child


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_survives(shape: str) -> None:
    with child_with(shape) as child:
        (grandchild, *_) = tree.descendants(child.pid)
        report = tree.kill_tree(child.pid, pidfd=child.pidfd)

        wait_gone(grandchild, timeout=0.0)
        assert report.surviving == ()
        assert leaks.tagged(child.tag) == []
        assert child.wait() == -signal.SIGKILL


def test_all_shapes_together_are_counted() -> None:
    shapes = [name for name in SHAPES if name != "runner"]
    with child_with(*shapes, *shapes) as child:
        report = tree.kill_tree(child.pid, pidfd=child.pidfd)

        assert report.killed >= 1 + 2 * (len(shapes) - 1 + CHAIN)
        assert leaks.tagged(child.tag) == []


def test_stopped_and_idle_trees_are_killed_too() -> None:
    with child_with("plain", "daemon") as child:
        for pid in (child.pid, *tree.descendants(child.pid)):
            os.kill(pid, signal.SIGSTOP)

        tree.kill_tree(child.pid, pidfd=child.pidfd)

        assert leaks.tagged(child.tag) == []


def test_a_pidfd_protects_whoever_has_the_pid_now() -> None:
    with child_with() as child, child_with("plain") as bystander:
        child.kill()

        report = tree.kill_tree(bystander.pid, pidfd=child.pidfd)

        assert report == tree.KillReport(0, (), report.seconds)
        assert len(leaks.tagged(bystander.tag)) == 2
        assert not tree.has_stopped(bystander.pid)
        tree.kill_tree(bystander.pid)


def test_a_tree_without_a_process_is_no_error() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    assert tree.kill_tree(gone.pid).killed == 0
    assert tree.descendants(gone.pid) == {}
    assert tree.read_stat(gone.pid) is None


def test_spared_processes_and_theirs_live_on() -> None:
    with child_with("chain", "plain", "daemon") as child:
        (first, *_others) = tree.children(child.pid)
        spared = {first, *tree.descendants(first)}

        report = tree.kill_descendants(child.pid, pidfd=child.pidfd, spare=frozenset({first}))

        assert report.killed == 2
        assert {leak.pid for leak in leaks.tagged(child.tag)} == {child.pid, *spared}
        assert len(spared) == CHAIN
        wait_until(lambda: not tree.has_stopped(child.pid), "the child goes on")
        tree.kill_tree(child.pid, pidfd=child.pidfd)


def test_descendants_are_listed_with_their_names() -> None:
    with child_with("plain", "daemon") as child:
        below = {pid: stat for pid, stat in tree.descendants(child.pid).items() if not stat.is_gone}

        assert len(below) == 2
        assert {stat.ppid for stat in below.values()} == {child.pid}
        assert sorted(stat.session == child.pid for stat in below.values()) == [False, True]
        tree.kill_tree(child.pid, pidfd=child.pidfd)


def test_stat_counts_fields_behind_any_name() -> None:
    program = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x', 0, 0, 0); print(flush=True); input()"
    with Program("-c", program) as named:
        named.line()
        stat = tree.read_stat(named.pid)

        assert stat is not None
        assert (stat.pid, stat.ppid, stat.session) == (named.pid, os.getpid(), os.getsid(named.pid))


def test_a_frozen_child_can_be_read_and_goes_on() -> None:
    counter = "import os, sys\nprint(flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)"
    with Program("-c", counter) as child:
        child.line()

        assert tree.freeze(child.pidfd)
        child.say("while it is frozen")
        assert tree.has_stopped(child.pid)
        tree.thaw(child.pidfd)

        assert child.line() == "while it is frozen"


def test_freezing_stops_every_thread_of_a_child_that_is_busy_in_c() -> None:
    busy = """
import hashlib, threading
data = bytes(1 << 28)
for _ in range(3):
    threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(1000)]).start()
print(flush=True)
"""
    with Program("-c", busy) as child:
        child.line()

        assert tree.freeze(child.pidfd)
        assert tree.has_stopped(child.pid)
        used = [_cpu_ticks(child.pid) for _ in range(50)]
        assert len(set(used)) == 1


def test_freezing_the_dead_says_so() -> None:
    with Program("-c", "") as child:
        child.wait()

        assert not tree.freeze(child.pidfd)
        tree.thaw(child.pidfd)
        assert tree.pid_of(child.pidfd) == -1
        assert not tree.is_alive(child.pidfd)


def test_pid_of_wants_a_pidfd() -> None:
    with pytest.raises(ValueError, match="no pidfd"):
        tree.pid_of(0)


def test_without_lists_of_children_the_whole_of_proc_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    with child_with("plain", "daemon", "group") as child:
        listed = set(tree.children(child.pid))
        monkeypatch.setattr(tree, "_HAS_LISTS", False)

        assert set(tree.children(child.pid)) == listed
        tree.kill_tree(child.pid, pidfd=child.pidfd)
        assert leaks.tagged(child.tag) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")
def test_processes_of_another_user_are_reported() -> None:
    victim = """
import os, subprocess
cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
os.setresuid(65534, 65534, 65534)
print(cat.pid, flush=True)
input()
"""
    killer = """
import os
from tasuki_mp.supervisor.tree import kill_tree
os.setresuid(65534, 65534, 65534)
report = kill_tree(int(input()))
print(report.killed, *report.surviving, flush=True)
"""
    with Program("-c", victim) as tree_of_two, Program("-c", killer) as unprivileged:
        cat = tree_of_two.line()
        unprivileged.say(str(tree_of_two.pid))

        assert unprivileged.words() == ["1", cat]
        assert tree_of_two.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")
def test_a_root_of_another_user_is_reported_and_not_frozen() -> None:
    """As what `sudo` has started, and has left to us."""
    killer = """
import os
from tasuki_mp.supervisor import tree
os.setresuid(65534, 65534, 65534)
pid = int(input())
report = tree.kill_tree(pid)
print(report.killed, *report.surviving, tree.freeze(os.pidfd_open(pid)), flush=True)
"""
    with Program("-c", "input()") as victim, Program("-c", killer) as unprivileged:
        unprivileged.say(str(victim.pid))

        assert unprivileged.words() == ["0", str(victim.pid), "False"]


@pytest.mark.speed
def test_a_killed_chain_takes_milliseconds() -> None:
    with child_with("chain", "daemon", "deaf") as child:
        report = tree.kill_tree(child.pid, pidfd=child.pidfd)

        assert report.seconds < tree.STOP_SECONDS / 2


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])
