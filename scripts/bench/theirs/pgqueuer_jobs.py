"""pgqueuer's side of the benchmark: runs in pgqueuer's own virtual environment, and imports nothing of this project.

`pgq run pgqueuer_jobs:worker` is its worker; `python pgqueuer_jobs.py JOBS` enqueues. PGDSN says where.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

AT_ONCE = 5_000


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """The fastest of its kinds of handler: a coroutine, on the loop of the process that leases and finishes."""
    connection = await asyncpg.connect(os.environ["PGDSN"])
    try:
        app = PgQueuer(AsyncpgDriver(connection))

        @app.entrypoint("noop")
        async def noop(_: Job) -> None:
            pass

        yield app
    finally:
        await connection.close()


async def enqueue(jobs: int) -> None:
    connection = await asyncpg.connect(os.environ["PGDSN"])
    queries = Queries(AsyncpgDriver(connection))
    for begin in range(0, jobs, AT_ONCE):
        count = min(AT_ONCE, jobs - begin)
        await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1])))
