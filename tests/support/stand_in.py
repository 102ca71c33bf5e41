"""Stands in for a supervisor, with nothing of it but its processes: `python -m tests.support.stand_in`.

It keeps two executors of one child each, like slots, from a shielded forkserver and with the guard as initializer. Each
line of input names a function below, which both children run; their answers are printed, a line each.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tasuki_mp.child.guard import SHIELDED, protect

NOFILE = 64
_PR_GET_CHILD_SUBREAPER = 37
_SIGNALS_OF_SELF = ["sed", "-n", "s/^Sig\\(Ign\\|Blk\\):[^0-9a-f]*//p", "/proc/self/status"]


def say(line: str) -> None:
    """Print a line in one piece, so that those of several processes don't mix."""
    os.write(1, f"{line}\n".encode())


def initialize(gate: str | None) -> None:
    """The executor's initializer. A gate is a FIFO: the child comes up to the guard, says so, and waits for a byte."""
    if gate is not None:
        say(f"at the gate {os.getpid()}")
        os.read(os.open(gate, os.O_RDONLY), 1)
    protect(nofile=NOFILE)
    if gate is not None:
        say("past the guard")


def pids() -> str:
    """The child's pid and its forkserver's."""
    return f"{os.getpid()} {os.getppid()}"


def burn() -> None:
    """Burn CPU in C, holding the GIL, in this child and in one that it forks."""
    pid = os.fork()
    if pid:
        say(f"{os.getpid()} {pid}")
    sum(range(10**12))


def state() -> str:
    """What the guard has made of this child."""
    subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
    return json.dumps(
        {
            "is_leader": os.getsid(0) == os.getpgrp() == os.getpid(),
            "is_subreaper": bool(subreaper.value),
            "has_faulthandler": faulthandler.is_enabled(),
            "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii")),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }
    )


def bombard() -> str:
    """Send this child every signal that it is shielded from."""
    for number in SHIELDED:
        os.kill(os.getpid(), number)
    return "unharmed"


def inherited() -> str:
    """Which signals a program that this child starts finds ignored, and which blocked: two masks."""
    return subprocess.run(_SIGNALS_OF_SELF, capture_output=True, text=True, check=True).stdout.replace("\n", " ")


def terminate_fork() -> str:
    """How a process that this child forked takes a SIGTERM, as `multiprocessing` ends its workers."""
    worker = multiprocessing.get_context("fork").Process(target=signal.pause)
    worker.start()
    worker.terminate()
    worker.join()
    return str(worker.exitcode)


def main() -> None:
    """Serve standard input."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # As a thread that blocks signals would start the forkserver.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.stand_in_preload"])
    gate = sys.argv[1] if len(sys.argv) > 1 else None
    slots = [ProcessPoolExecutor(1, context, initialize, (gate,)) for _ in range(2)]
    say("ready")
    for line in sys.stdin:
        name = line.strip()
        if name == "exit":
            os._exit(0)
        for future in [slot.submit(globals()[name]) for slot in slots]:
            if gate is None and name != "burn":
                say(future.result())


if __name__ == "__main__":
    main()
