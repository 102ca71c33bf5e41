"""One of the producers of `throughput-producer`, in a process of its own.

    python -m scripts.bench.producer DSN SECONDS told|silent

Connects, says `ready`, waits for a line, enqueues one job after the other for that long, and prints how many. A silent one
sends the same statement with the same parameters but for the one that says whether supervisors are to be notified.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from scripts.bench import app
from tasuki_mp import Client
from tasuki_mp.job import Job
from tasuki_mp.store import produce
from tasuki_mp.store.bulk import cursor


def main(dsn: str, seconds: float, *, is_told: bool) -> int:
    client = Client(dsn)
    with client.connection(None) as conn:
        conn.execute(b"SELECT")
    enqueue: Callable[[Job], object] = client.enqueue if is_told else partial(_enqueue_silently, client)
    print("ready", flush=True)
    sys.stdin.readline()
    count = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        enqueue(app.noop.job())
        count += 1
    return count


def _enqueue_silently(client: Client, job: Job) -> None:
    with client.connection(None) as conn:
        cursor(conn).execute(produce.ENQUEUE, produce.enqueue_parameters(job, is_told=False)).fetchone()


if __name__ == "__main__":
    print(main(sys.argv[1], float(sys.argv[2]), is_told=sys.argv[3] == "told"))
