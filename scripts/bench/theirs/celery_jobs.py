"""Celery's side of the benchmark: runs in Celery's own virtual environment, and imports nothing of this project.

`celery -A celery_jobs worker` is its worker; `python celery_jobs.py JOBS` enqueues. PEER_BROKER says where.
"""

from __future__ import annotations

import os
import sys

from celery import Celery

app = Celery("celery_jobs", broker=os.environ["PEER_BROKER"])
# A job whose process died is run again, as with us. No results are kept, and no events sent: less work than it could have.
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)


@app.task(name="noop")
def noop() -> None:
    pass


def enqueue(jobs: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(jobs):
            noop.apply_async(producer=producer)


if __name__ == "__main__":
    enqueue(int(sys.argv[1]))
