"""The row about large payloads and results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from typing import Final

from scripts.bench import app, slots
from scripts.bench.figures import Pair
from scripts.bench.stage import Stage
from tasuki_mp.job import Job

SIZES: Final = {"1 kB": 1_000, "100 kB": 100_000, "1 MB": 1_000_000}
LARGE: Final = "1 MB"
BYTES: Final = 100_000_000
"""How much payload goes in for each size, at most."""
MOST_JOBS: Final = 5_000
MILLISECOND: Final = 0.001
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def payload(stage: Stage, *, bytes_each: int = BYTES) -> Callable[[], Pair]:
    """Jobs that return what they were given, in MB a second there and back; the figures are those of 1 MB.

    The references are bare pipes to as many processes, and a bare COPY of the same payloads into the same table. What
    other jobs suffer is the longest time that a slot stood free between two jobs of 1 ms, beside jobs of 1 MB and without.
    """
    step = app.steps_for(MILLISECOND)

    def measure() -> Pair:
        extra = {}
        for name, size in SIZES.items():
            count = max(stage.procs, min(MOST_JOBS, bytes_each // size))
            moved = 2 * count * size / 1e6
            _, took = stage.run_jobs(app.echo.job(text=text) for text in _texts(count, size))
            piped = _pipe_seconds(stage.procs, count, size)
            copied = _copy_seconds(stage, count, size)
            ours, pipe = moved / took, moved / piped
            extra[f"{name}: MB/s"] = ours
            extra[f"{name}: bare pipes, MB/s"] = pipe
            extra[f"{name}: bare COPY, MB/s"] = moved / 2 / copied
        shorts = max(100, bytes_each // 50_000)
        extra["longest gap between short jobs, ms"] = _gap(stage, shorts, 0, step)
        extra["the same beside jobs of 1 MB, ms"] = _gap(stage, shorts, max(1, shorts // 20), step)
        ours, pipe = extra[f"{LARGE}: MB/s"], extra[f"{LARGE}: bare pipes, MB/s"]
        return Pair(ours, pipe, ours / pipe, extra)

    return measure


def _texts(count: int, size: int) -> Iterator[str]:
    """Texts that hardly compress, a few different ones."""
    chance = random.Random(size)
    made = ["".join(chance.choices(_LETTERS, k=size)) for _ in range(min(count, 4))]
    return (made[number % len(made)] for number in range(count))


def _gap(stage: Stage, shorts: int, larges: int, step: int) -> float:
    """Milliseconds that a slot stood free at most between two short jobs that it ran one after the other."""
    made: list[Job] = [app.timed.job(steps=step)] * shorts
    made += [app.carry.job(text=text) for text in _texts(larges, SIZES[LARGE])]
    random.Random(1).shuffle(made)
    stage.run_jobs(made)
    done = slots.runs(stage, short_below=step + 1, handler="timed")
    done += [run._replace(is_short=False) for run in slots.runs(stage, short_below=1, handler="carry")]
    gaps = [
        other.begin - one.end
        for jobs in slots.by_slot(done)
        for one, other in pairwise(jobs)
        if one.is_short and other.is_short
    ]
    return max(gaps) * 1000


def _pipe_seconds(procs: int, count: int, size: int) -> float:
    """How long bare pipes take to bring that much to processes and back, one message at a time each."""
    ends = []
    for _ in range(procs):
        near, far = Pipe()
        process = Process(target=_bounce, args=(far,))
        process.start()
        far.close()
        ends.append((near, process))
    data = next(_texts(1, size)).encode()
    for near, _ in ends:
        near.send_bytes(b"ready?")
        near.recv_bytes()
    begin = time.perf_counter()
    for number in range(count):
        near, _ = ends[number % procs]
        if number >= procs:
            near.recv_bytes()
        near.send_bytes(data)
    for near, _ in ends[: min(procs, count)]:
        near.recv_bytes()
    took = time.perf_counter() - begin
    for near, process in ends:
        near.send_bytes(b"")
        process.join()
    return took


def _bounce(far: Connection) -> None:
    while data := far.recv_bytes():
        far.send_bytes(data)


def _copy_seconds(stage: Stage, count: int, size: int) -> float:
    """How long a bare COPY of these payloads takes."""
    stage.clear()
    texts = [f'{{"text":"{text}"}}' for text in _texts(min(count, 4), size)]
    begin = time.perf_counter()
    with stage.conn.cursor().copy(b"COPY tasuki.job (queue, handler, payload) FROM STDIN") as copy:
        for number in range(count):
            copy.write_row(("none", "echo", texts[number % len(texts)]))
    return time.perf_counter() - begin
