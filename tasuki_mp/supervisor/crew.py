"""Threads and descriptors while there are some: a host or container may run out of processes, and threads count as such.

The supervisor must go on then, whatever handlers and neighbours have started: it keeps the threads that it needs, and starts
no child unless there is room for what belongs to it and some more. The same with open files: connections and modules that are
needed later must not find that children have all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

FOR_A_CHILD: Final = 8
"""A child is a process and two threads of its executor; the rest is for what it starts, and for burying it."""
FOR_THE_LOOP: Final = 8
DESCRIPTORS: Final = 36
"""Sixteen of a child, four more while it is being started, and sixteen for all else: connections, and what is read."""


def hands() -> ThreadPoolExecutor:
    """Workers for what would block the loop, all of them running from the beginning if they can be had."""
    workers = ThreadPoolExecutor(FOR_THE_LOOP, thread_name_prefix="worker")
    together = threading.Barrier(FOR_THE_LOOP)
    with contextlib.suppress(RuntimeError):  # fewer, then
        for _ in range(FOR_THE_LOOP):
            workers.submit(_meet, together)
    return workers


def require_room() -> None:
    """Make sure that a child could be started at this moment, and some more be done. Raises OSError."""
    _require_descriptors()
    _require_threads()


def _require_descriptors() -> None:
    # Counted, not tried: for the time of a try others would find none.
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit - len(os.listdir("/proc/self/fd")) < DESCRIPTORS:
        raise OSError(errno.EMFILE, f"too few open files are allowed here, {limit}; see ulimit -n")


def _require_threads() -> None:
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(FOR_A_CHILD):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        reason = "no more processes or threads can be had here; see ulimit -u, and pids.max of the container"
        raise OSError(errno.EAGAIN, reason) from error
    finally:
        over.set()
        for thread in started:
            thread.join()


def _meet(together: threading.Barrier) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        together.wait(1.0)
