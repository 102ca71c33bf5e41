"""Rows about what the program takes when nothing happens: idle, memory."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from scripts.bench import app, meter, statements, steady
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from scripts.harness import host
from scripts.harness.runner import ROOT
from scripts.harness.waiting import wait

SLOTS: Final = 8
SHARE: Final = 1.0
SETTLED: Final = 5.0
"""Seconds after the start from which on nothing but the upkeep happens."""
CHILD_MORE: Final = 8.0


def idle(stage: Stage, *, seconds: float) -> Callable[[], Pair]:
    """The program's CPU time in percent of a core, with eight slots and nothing to do; its limit is the reference.

    All of its processes are counted, the server's apart; statements are those in the server's log.
    """

    def measure() -> Pair:
        stage.clear()
        with statements.logged(stage.conn, stage.server_log) as log, stage.waiting(procs=SLOTS):
            wait(lambda: False, SETTLED, every=1)
            mark, begin = log.mark(), host.now()
            program, server = meter.program_cpu(stage.tag), meter.server_cpu(stage.conn)
            wait(lambda: False, seconds, every=5)
            program, server = meter.program_cpu(stage.tag) - program, meter.server_cpu(stage.conn) - server
            took = host.now() - begin
            said = [each for each in log.statements(mark) if each.application.startswith("tasuki-mp")]
        share = program / took * 100
        extra = {"statements a second": len(said) / took, "the server, % of a core": server / took * 100}
        return Pair(share, SHARE, SHARE / max(share, 1e-3), extra)

    return measure


def memory(stage: Stage, *, jobs: int) -> Callable[[], Pair]:
    """What each of eight children has for itself alone after its jobs, against the children of a bare pool after as many."""

    def measure() -> Pair:
        stage.clear()
        with stage.waiting(procs=SLOTS) as (runner,):
            app.app.enqueue_many(itertools.repeat(app.noop.job(), jobs), stage.conn)
            steady.await_none(stage.conn)
            supervisor = meter.memory(runner.pid)
            children = [meter.memory(pid) for pid in host.slots_of(runner.pid)]
            forkserver = host.forkserver_of(runner.pid)
            shared = meter.memory(forkserver)["Pss"] if forkserver is not None else 0.0
        child = statistics.median(each["Private"] for each in children)
        command = [sys.executable, "-m", "scripts.bench.bare", "memory", str(SLOTS), str(jobs)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        bare = statistics.median(json.loads(done.stdout))
        extra = {
            "a child beyond a bare one, MiB": child - bare,
            "supervisor, resident MiB": supervisor["Rss"],
            "supervisor, proportional MiB": supervisor["Pss"],
            "forkserver, proportional MiB": shared,
            "all together, proportional MiB": supervisor["Pss"] + shared + sum(each["Pss"] for each in children),
        }
        return Pair(child, bare, (bare + CHILD_MORE) / child, extra)

    return measure
