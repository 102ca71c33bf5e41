"""Finding and killing whole process trees: everything below a child, whatever shape its handler gave it.

Blocking, thread-safe and bounded in time; runs in the supervisor's worker threads. A tree is stopped before it is
killed, so that nothing in it can fork away from under the scan; daemons stay in it because every child is a subreaper.
Signals go through pidfds only, so a pid that was used again is never hit. Linux only.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

STOP_SECONDS: Final = 2.0
"""How long a tree may go on changing before it is killed as far as it is known."""
DEATH_SECONDS: Final = 2.0
"""How long to wait for killed processes to be gone. A process in uninterruptible I/O may take longer."""

_LOOK_AGAIN_MS: Final = 1
_QUIET_PASSES: Final = 2
_STANDING: Final = frozenset(b"TtZXD")
_GONE: Final = frozenset(b"ZX")
_HAS_LISTS: Final = Path("/proc/thread-self/children").exists()
"""Whether the kernel lists children by parent (CONFIG_PROC_CHILDREN, as all distributions have it)."""


class Stat(NamedTuple):
    """What /proc knows of a process. A pid and its start time together are never used twice."""

    pid: int
    state: int
    ppid: int
    session: int
    started: int
    """Clock ticks after the boot."""

    @property
    def is_gone(self) -> bool:
        return self.state in _GONE


@dataclass(frozen=True)
class KillReport:
    """What became of a tree."""

    killed: int
    """Processes that were alive, got SIGKILL, and are gone."""
    surviving: tuple[int, ...]
    """Pids that could not be signalled (another user's) or were not gone in time."""
    seconds: float


def kill_tree(root: int, *, pidfd: int | None = None, spare: frozenset[int] = frozenset()) -> KillReport:
    """Kill `root` and everything below it; returns when they are gone.

    `root` is a pid, and `pidfd`, where the caller has one, proves which process is meant: without it the caller must
    know that the pid can't have been used again, as for a child that nobody has reaped. Processes in `spare`, and
    what is below them, are left alone. If `root` is dead already, its descendants have been adopted by the supervisor
    and are found there (see `reaper`), not here.
    """
    return _kill(root, pidfd=pidfd, spare=spare, is_root_meant=True)


def kill_descendants(root: int, *, pidfd: int | None = None, spare: frozenset[int] = frozenset()) -> KillReport:
    """Kill everything below `root`, which stands still meanwhile and then goes on. Arguments as for `kill_tree`."""
    return _kill(root, pidfd=pidfd, spare=spare, is_root_meant=False)


def freeze(pidfd: int, *, timeout: float = STOP_SECONDS) -> bool:
    """Stop the process and wait until none of its threads can run: then what it shares with us can be read calmly.

    False if it is dead, is somebody else's by now, or does not stop in time. Follow with `kill_tree` or `thaw` in any case.
    """
    try:
        if not _signal(pidfd, signal.SIGSTOP):
            return False
    except PermissionError:
        return False
    pid = pid_of(pidfd)
    deadline = time.monotonic() + timeout
    while not has_stopped(pid):
        # Death ends this wait at once; being stopped has nothing to wait on, so it is looked for.
        if _wait_readable([pidfd], _LOOK_AGAIN_MS) or time.monotonic() > deadline:
            return False
    return is_alive(pidfd)


def thaw(pidfd: int) -> None:
    """Let a frozen process go on. Harmless if it has died."""
    _signal(pidfd, signal.SIGCONT)


def descendants(root: int) -> dict[int, Stat]:
    """Everything below `root` at this moment, zombies included. Cheap, but no more than a glance: see `kill_tree`."""
    found: dict[int, Stat] = {}
    stack = [root]
    while stack:
        for pid in children(stack.pop()):
            stat = read_stat(pid)
            if stat is not None and pid not in found:
                found[pid] = stat
                stack.append(pid)
    return found


def children(pid: int, *, thread: int | None = None) -> list[int]:
    """The pids of the children of `pid`, or of one of its threads; none if it is gone.

    Exact while that process is stopped. A process has the children that each of its threads started; those it adopted
    count as its first thread's.
    """
    if not _HAS_LISTS:
        return [stat.pid for stat in map(read_stat, _numbers("/proc")) if stat is not None and stat.ppid == pid]
    found: list[int] = []
    for one in _numbers(f"/proc/{pid}/task") if thread is None else (thread,):
        found += map(int, _read(f"/proc/{pid}/task/{one}/children").split())
    return found


def read_stat(pid: int) -> Stat | None:
    """What /proc says of `pid`, or None if there is no such process."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name, in parentheses, may hold anything, spaces and parentheses too: count from its end.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0][0], int(fields[1]), int(fields[3]), int(fields[19]))


def has_stopped(pid: int) -> bool:
    """Whether no thread of `pid` can run: each is stopped, dead, or inside of the kernel and stopped before it is out.

    The last is what a parent looks like whose `vfork` was caught halfway; it would look so for ever.
    """
    return all(_state(pid, thread) in _STANDING for thread in _numbers(f"/proc/{pid}/task"))


def is_alive(pidfd: int) -> bool:
    """Whether the process has not ended; a zombie has."""
    return not _wait_readable([pidfd], 0)


def has_died(pidfd: int, *, within: float) -> bool:
    """Whether the process ends within so many seconds; waits for it no longer than that."""
    return bool(_wait_readable([pidfd], math.ceil(within * 1000)))


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd; -1 once it has been reaped."""
    for line in _read(f"/proc/self/fdinfo/{pidfd}").splitlines():
        name, _, value = line.partition(b":")
        if name == b"Pid":
            return int(value)
    raise ValueError(f"descriptor {pidfd} is no pidfd")


def _kill(root: int, *, pidfd: int | None, spare: frozenset[int], is_root_meant: bool) -> KillReport:
    began = time.monotonic()
    try:
        held = os.pidfd_open(root) if pidfd is None else os.dup(pidfd)
    except ProcessLookupError:
        return KillReport(0, (), time.monotonic() - began)
    tree = _Tree(root, held, spare)
    try:
        tree.kill_below(until=began + STOP_SECONDS)
        if is_root_meant:
            tree.kill({root: held})
        else:
            thaw(held)
    except PermissionError:
        tree.surviving.add(root)  # somebody else's, as what `sudo` has started
    finally:
        tree.close()
    return KillReport(tree.killed, tuple(sorted(tree.surviving)), time.monotonic() - began)


class _Tree:
    """A root and the processes found below it so far, each held by a pidfd."""

    def __init__(self, root: int, pidfd: int, spare: frozenset[int]) -> None:
        self.killed = 0
        self.surviving: set[int] = set()
        self._root = root
        self._pidfd = pidfd
        self._spare = spare
        self._below: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the processes."""
        for pidfd in (self._pidfd, *self._below.values()):
            os.close(pidfd)

    def kill_below(self, *, until: float) -> None:
        """Stop the root and kill everything below it.

        The root comes last: as long as it stands there, stopped, it adopts what its descendants leave behind. That can
        be more than was seen: when a process dies, the kernel may set its stopped children going again (those in a
        process group of their own), and before their SIGKILL comes they may start others.
        """
        if not _signal(self._pidfd, signal.SIGSTOP):
            return
        while True:
            self._stop_below(until=until)
            if not self._below:
                return
            self.kill(self._below)
            for pidfd in self._below.values():
                os.close(pidfd)
            self._below = {}
            if time.monotonic() > until:
                return

    def kill(self, pidfds: dict[int, int]) -> None:
        """SIGKILL to all of these, and wait until they are gone."""
        left = {pidfd: pid for pid, pidfd in pidfds.items() if is_alive(pidfd) and _signal(pidfd, signal.SIGKILL)}
        self.killed += len(left)
        deadline = time.monotonic() + DEATH_SECONDS
        while left and (rest := deadline - time.monotonic()) > 0:
            for pidfd in _wait_readable(left, math.ceil(rest * 1000)):
                del left[pidfd]
        self.killed -= len(left)
        self.surviving.update(left.values())

    def _stop_below(self, *, until: float) -> None:
        """Stop everything below the root, until looks at processes that all stood still find nothing new."""
        quiet = 0
        while quiet < _QUIET_PASSES and time.monotonic() < until:
            # In this order: had they been looked at first and found standing afterwards, one may have forked between.
            stood_still = all(has_stopped(pid) for pid in (self._root, *self._below))
            has_found = self._pass()
            quiet = quiet + 1 if stood_still and not has_found else 0
            if not stood_still and not has_found:
                _wait_readable((), _LOOK_AGAIN_MS)

    def _pass(self) -> bool:
        """Stop everything below the root that is not yet known; whether there was any."""
        before = len(self._below)
        stack, parents = [(self._root, self._pidfd)], {self._root}
        while stack:
            parent, pidfd = stack.pop()
            listed = children(parent)
            if not is_alive(pidfd):
                continue  # the list may be that of another process by now; its children are somebody else's anyway
            for pid in reversed(
                listed
            ):  # the newest first: one that forks and exits, again and again, is hard to catch
                if pid in parents or pid in self._spare or pid in self.surviving:
                    continue
                held = self._below.get(pid) or self._take(pid, parents)
                if held is not None:
                    parents.add(pid)
                    stack.append((pid, held))
        return len(self._below) > before

    def _take(self, pid: int, parents: set[int]) -> int | None:
        """A pidfd of `pid`, which is now stopped; None if it is dead, or not ours to kill."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Between the list and the pidfd the pid may have been used again. Now that the pidfd pins it down, look once
        # more: its parent is the one it had, or, if that died meanwhile, one further up in the tree.
        stat = read_stat(pid)
        try:
            if stat is not None and not stat.is_gone and stat.ppid in parents and _signal(pidfd, signal.SIGSTOP):
                self._below[pid] = pidfd
                return pidfd
        except PermissionError:
            self.surviving.add(pid)
        os.close(pidfd)
        return None


def _signal(pidfd: int, number: signal.Signals) -> bool:
    """Whether the process was there to get the signal."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _wait_readable(fds: Iterable[int], timeout_ms: int) -> list[int]:
    """Those of the descriptors that became readable, as pidfds do at death, within the time."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(timeout_ms)]


def _state(pid: int, thread: int) -> int:
    text = _read(f"/proc/{pid}/task/{thread}/stat")
    return text[text.rindex(b")") + 2] if text else ord("X")


def _numbers(folder: str) -> list[int]:
    """The numeric names in a folder of /proc; none if its process is gone."""
    try:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read(path: str) -> bytes:
    """The content of a file in /proc; empty if its process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        text = b""
        while chunk := os.read(fd, 1 << 16):
            text += chunk
    except ProcessLookupError:
        return b""
    finally:
        os.close(fd)
    return text
