"""Ends what a dead child left behind.

When a child dies by itself, its descendants live on and are adopted by the supervisor, which is their subreaper. The
reaper kills them, trees and all, and takes the zombies away. It is asked at each child's death and every few seconds;
it owns no thread.

Processes in the supervisor's own session are none of its business: children lead sessions of their own and nobody can
move back into another one, so those were started by the supervisor itself (the forkserver, the resource tracker, a
helper), and whoever started them waits for them by pid. For the same reason nothing here waits for just any child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from tasuki_mp.child import guard
from tasuki_mp.supervisor import tree

_MOST_ROUNDS: Final = 20
"""How often one sweep looks again. A tree that was killed can hand over another one's remains, but not for ever."""


class Reaper:
    """Kills and reaps adopted processes. From its making on, this process is the subreaper of everything below it.

    `known` names pids that are not to be touched although they may turn up as adopted: the children in the slots
    (adopted if the forkserver dies), and daemons that the supervisor started itself. A daemon started before the reaper
    is made belongs to somebody else and needs no naming.
    """

    def __init__(self, known: Callable[[], set[int]]) -> None:
        guard.become_subreaper()
        self._known = known
        self._session = os.getsid(0)
        self._lock = threading.Lock()

    def sweep(self) -> list[int]:
        """Kill and reap everything adopted and not known; returns the pids that were still alive, without those below.

        Takes some 20 µs if there is nothing to do and some 10 ms for each tree, so it belongs into a worker thread.
        Safe to call from several.
        """
        killed: list[int] = []
        stuck: set[int] = set()
        with self._lock:
            for _ in range(_MOST_ROUNDS):
                adopted = [stat for stat in self._adopted() if stat.pid not in stuck]
                if not adopted:
                    break
                for stat in adopted:
                    if not stat.is_gone:
                        killed.append(stat.pid)
                        stuck.update(tree.kill_tree(stat.pid).surviving)
                    _reap(stat.pid)
        return killed

    def _adopted(self) -> list[tree.Stat]:
        pid = os.getpid()
        stats = [tree.read_stat(child) for child in tree.children(pid, thread=pid)]
        foreign = [stat for stat in stats if stat is not None and stat.session != self._session]
        # Asked for after looking: a child that got its slot since then is in both.
        known = self._known() if foreign else set()
        return [stat for stat in foreign if stat.pid not in known]


def _reap(pid: int) -> None:
    """Take the zombie away. Does nothing if the process is not gone yet: a later sweep will find it."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return
