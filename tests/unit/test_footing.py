"""What is done without on a host that lacks something, and what nothing can be done without."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasuki_mp.child import guard, tidy
from tasuki_mp.errors import ConfigError
from tasuki_mp.supervisor import footing, tree
from tests.unit.test_cores import V2, machine

EVERYTHING = {
    "proc/thread-self/children": "",
    "proc/self/clear_refs": "",
    "sys/fs/cgroup/a/memory.events": "oom_kill 0",
}


def whats(root: Path) -> list[str]:
    return [lack.what for lack in footing.lacks(root=root)]


def test_where_everything_is_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert whats(machine(tmp_path, cgroup="0::/a", mountinfo=V2, files=EVERYTHING)) == []


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ("proc/thread-self/children", "lists of children in /proc"),
        ("proc/self/clear_refs", "clear_refs in /proc"),
        ("sys/fs/cgroup/a/memory.events", "a count of OOM kills"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, what: str) -> None:
    files = {name: text for name, text in EVERYTHING.items() if name != missing}
    assert whats(machine(tmp_path, cgroup="0::/a", mountinfo=V2, files=files)) == [what]


def test_a_bare_machine_lacks_it_all(tmp_path: Path) -> None:
    lacks = footing.lacks(root=tmp_path)
    assert len({lack.what for lack in lacks}) == 5
    assert all(lack.instead for lack in lacks)


def test_without_pidfds_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    footing.require()

    def refuse(_pid: int) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(ConfigError, match=r"Operation not permitted.*a container that allows them"):
        footing.require()
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(ConfigError, match=r"no pidfds.*Linux 5\.3"):
        footing.require()


def test_without_subreapers_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_PR_GET_CHILD_SUBREAPER", -1)
    with pytest.raises(ConfigError, match="subreaper"):
        footing.require()


def test_children_are_found_without_lists_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        listed = tidy.processes_below(), sorted(tree.children(os.getpid()))
        monkeypatch.setattr(tidy, "LISTS", str(tmp_path / "none"))
        monkeypatch.setattr(tree, "_HAS_LISTS", False)
        assert (tidy.processes_below(), sorted(tree.children(os.getpid()))) == listed
        assert process.pid in tidy.processes_below()
        process.communicate(b"\n")
    assert process.pid not in tidy.processes_below()
