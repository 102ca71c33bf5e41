"""Who enqueues and cancels during a chaos run, and writes down in the same transaction that it did."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import psycopg

from scripts.chaos import app as jobs
from tasuki_mp.job import Job

Connection = psycopg.Connection[tuple[object, ...]]
Made = tuple[str, Job]
"""A kind of job, which says what must become of it, and the job."""

# How many of a thousand jobs are of each kind. Kinds have their handlers' names.
SHARES: dict[str, int] = {
    "noop": 475,
    "burn": 330,
    "flaky": 40,
    "hopeless": 10,
    "again": 40,
    "later": 40,
    "once": 50,
    "linger": 10,
    "pill": 5,
}


def make(chance: random.Random) -> Made:
    """One job."""
    kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
    match kind:
        case "noop":
            job = jobs.noop.job()
        case "burn":
            job = jobs.burn.job(ms=chance.choice([1, 1, 2, 5, 10, 20, 50]))
        case "flaky":
            job = jobs.flaky.job(until=chance.randint(2, 4))
        case "hopeless":
            job = jobs.hopeless.job()
        case "again":
            job = jobs.again.job(until=chance.randint(2, 4))
        case "later":
            job = jobs.later.job(leases=chance.randint(2, 4))
        case "once":
            job = jobs.once.job(ms=chance.choice([1, 20, 200]))
        case "linger":
            job = jobs.linger.job(seconds=chance.uniform(0.5, 8.0))
        case _:
            job = jobs.pill.job(signo=chance.choice([signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT]))
    return kind, job.priority(chance.choices([0, 1, 2, 3], [1, 2, 10, 3])[0])


class Producers:
    """Threads that enqueue `count` jobs evenly over `seconds`, and cancel some of them."""

    def __init__(self, dsn: str, *, count: int, seconds: float, seed: int, threads: int = 2) -> None:
        self._dsn = dsn
        self._seconds = seconds
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        counts = [count // threads + (index < count % threads) for index in range(threads)]
        self._threads = [
            threading.Thread(target=self._guarded, args=(share, random.Random(f"{seed} producer {index}")))
            for index, share in enumerate(counts)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Enqueue no more and wait for the threads."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _guarded(self, count: int, chance: random.Random) -> None:
        try:
            self._produce(count, chance)
        except BaseException as error:  # noqa: BLE001 -- the main thread reports it
            self.errors.append(error)

    def _produce(self, count: int, chance: random.Random) -> None:
        begin = time.monotonic()
        done = 0
        victims: list[int] = []
        link = _Link(self._dsn, self._stop)
        with contextlib.closing(link):
            while done < count and not self._stop.is_set():
                size = min(count - done, chance.choice([1, 1, 1, 5, 50]))
                made = [make(chance) for _ in range(size)]
                ids = link.transact(partial(_enqueue, made=made, is_kept=True))
                done += size
                if chance.random() < 0.1:
                    # What is rolled back must never run.
                    link.transact(partial(_enqueue, made=made, is_kept=False))
                for (kind, _), job_id in zip(made, ids, strict=True):
                    if (kind == "linger" and chance.random() < 0.5) or (kind == "burn" and chance.random() < 0.02):
                        victims.append(job_id)
                while victims and (len(victims) > 20 or chance.random() < 0.3):
                    victim = victims.pop(chance.randrange(len(victims)))
                    link.transact(partial(_cancel, job_id=victim))
                ahead = self._seconds * done / count - (time.monotonic() - begin)
                if ahead > 0:
                    self._stop.wait(ahead)


def _enqueue(conn: Connection, *, made: Sequence[Made], is_kept: bool) -> list[int]:
    ids: list[int] = []
    with conn.transaction(force_rollback=not is_kept):
        if len(made) > 10:
            ids.extend(jobs.app.enqueue_many((job for _, job in made), conn))
        else:
            ids.extend(jobs.app.enqueue(job, conn).id for _, job in made)
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO chaos.ledger (id, kind) VALUES (%s, %s)",
                [(job_id, kind) for job_id, (kind, _) in zip(ids, made, strict=True)],
            )
    return ids


def _cancel(conn: Connection, *, job_id: int) -> list[int]:
    with conn.transaction():
        verdict = jobs.app.cancel(job_id, conn=conn)[job_id]
        conn.execute(
            "INSERT INTO chaos.canceled (id, verdict) VALUES (%s, %s) ON CONFLICT (id) DO NOTHING", (job_id, verdict)
        )
    return []


class _Link:
    """A connection that is made again after it broke."""

    def __init__(self, dsn: str, stop: threading.Event) -> None:
        self._dsn = dsn
        self._stop = stop
        self._conn: Connection | None = None

    def transact(self, work: Callable[[Connection], list[int]]) -> list[int]:
        """Do it again and again until a COMMIT was answered; if only its answer was lost, it was done twice."""
        while True:
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = psycopg.connect(self._dsn, autocommit=True, connect_timeout=10)
                return work(self._conn)
            except Exception as error:
                cause = error if isinstance(error, psycopg.Error) else error.__cause__
                if not isinstance(cause, psycopg.OperationalError) or self._stop.is_set():
                    raise
                self.close()
                self._stop.wait(0.1)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None
