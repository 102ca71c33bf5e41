"""What the slots did all the time, from what the handlers themselves noted: their process, their begin and their end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from scripts.bench.stage import Stage


class Run(NamedTuple):
    """One job; seconds."""

    pid: int
    begin: float
    end: float
    is_short: bool


def runs(stage: Stage, *, short_below: float, handler: str) -> list[Run]:
    """Those of this handler, whose result begins with the three numbers; a job is short if it was meant to be."""
    query = """SELECT (result ->> 0)::int, (result ->> 1)::bigint, (result ->> 2)::bigint,
                      coalesce((payload ->> 'steps')::float8, 0) < %s
                 FROM tasuki.job_archive WHERE handler = %s"""
    rows = stage.conn.execute(query, (short_below, handler)).fetchall()
    return [Run(pid, begin / 1e9, end / 1e9, is_short) for pid, begin, end, is_short in rows]


def by_slot(done: Iterable[Run]) -> Iterator[list[Run]]:
    """Each slot's jobs, in their order."""
    found: dict[int, list[Run]] = defaultdict(list)
    for run in done:
        found[run.pid].append(run)
    for each in found.values():
        yield sorted(each, key=lambda run: run.begin)


def longest_wait(done: Iterable[Run]) -> float:
    """Seconds that a slot was free at most while a short job that began later was there: all were, from the beginning."""
    done = list(done)
    last = max(run.begin for run in done if run.is_short)
    longest = 0.0
    for jobs in by_slot(done):
        for one, other in pairwise([*jobs, Run(0, last, last, is_short=True)]):
            longest = max(longest, min(other.begin, last) - one.end)
    return longest
