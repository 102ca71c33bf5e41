"""What a map does next, played through without a database: what is enqueued when, and what is given when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest

from tasuki_mp import Handler, Job, MapError, Tasuki, course
from tasuki_mp.course import Add, Course, Give
from tasuki_mp.job import JobRow
from tasuki_mp.store import batches
from tasuki_mp.store.steps import Pause, Rows, Step

app = Tasuki(max_result=100_000)


@app.handler
def work(n: int) -> str:
    return str(n)


@app.handler
def other(n: int) -> None: ...


class World:
    """Answers as a database and its supervisors would, each job ending when it is asked for; its clock is told to go on."""

    def __init__(self, *, seconds: float = 0.001, size: int = 1) -> None:
        self.now = 0.0
        self.jobs: dict[int, JobRow] = {}
        self.added: list[JobRow] = []
        self.pauses = 0
        self.is_idle = False
        """Whether nobody runs jobs."""
        self._ids = itertools.count(1)
        self._seconds = seconds
        self._size = size

    def clock(self) -> float:
        return self.now

    def run(self, it: Course) -> Iterator[str]:
        effects = it.effects()
        reply: Rows | None = None
        while True:
            try:
                effect = next(effects) if reply is None else effects.send(reply)
            except StopIteration:
                return
            match effect:
                case Step():
                    reply = self._answer(effect)
                case Add():
                    reply = [(self._insert(row),) for row in effect.rows]
                case Pause():
                    self.now += effect.seconds
                    self.pauses += 1
                    reply = ()
                case Give():
                    yield from effect.values
                    reply = ()

    def _insert(self, row: JobRow) -> int:
        self.added.append(row)
        job_id = next(self._ids)
        self.jobs[job_id] = row
        return job_id

    def _answer(self, step: Step) -> Rows:
        parameters = step.parameters or {}
        if step.query == batches.CREATE:
            return [(7,)]
        if step.query == batches.RESULTS:
            return [] if self.is_idle else [self._end(job_id) for job_id in parameters["ids"]]
        items = msgspec.json.decode(self.jobs[parameters["job_id"]].payload)
        cut = [items[start : start + parameters["size"]] for start in range(0, len(items), parameters["size"])]
        rows = [JobRow(handler="work", payload=msgspec.json.encode(piece).decode()) for piece in cut]
        return [(self._insert(row), len(piece), 0) for row, piece in zip(rows, cut, strict=True)]

    def _end(self, job_id: int) -> tuple[Any, ...]:
        items = msgspec.json.decode(self.jobs[job_id].payload)
        result = msgspec.json.encode([f"{item['n']}".ljust(self._size) for item in items]).decode()
        if len(result) > app.max_result:
            return job_id, "failed", None, '{"type": "ResultTooLarge", "message": "too large"}', None
        return job_id, "completed", result, None, str(self._seconds * len(items))


def courses(world: World, items: Iterable[Any], *, chunk: course.Chunk = "auto", is_ordered: bool = True) -> Course:
    return Course(work, items, chunk=chunk, is_ordered=is_ordered, clock=world.clock)


def numbers(results: Iterable[str]) -> list[int]:
    return [int(result) for result in results]


def sizes(world: World) -> list[int]:
    return [len(msgspec.json.decode(row.payload)) for row in world.added]


def test_the_first_jobs_carry_one_item_and_the_others_half_a_second_of_work() -> None:
    world = World(seconds=0.01)
    assert numbers(world.run(courses(world, range(500)))) == list(range(500))
    assert sizes(world) == [1] * 8 + [50] * 9 + [42]


def test_large_results_make_small_chunks() -> None:
    world = World(size=3000)
    assert numbers(world.run(courses(world, range(1000)))) == list(range(1000))
    assert max(sizes(world)) == 16  # of 3,004 bytes each: half of the limit
    assert sizes(world)[:8] == [1] * 8


def test_a_job_whose_result_is_too_large_is_cut() -> None:
    world = World(size=3000)
    assert numbers(world.run(courses(world, range(130), chunk=100))) == list(range(130))
    assert sizes(world) == [100, 30, 25, 25, 25, 25]


def test_an_item_whose_result_is_too_large_fails_the_map() -> None:
    world = World(size=200_000)
    with pytest.raises(MapError, match=r"job \d+ of the map \(item 0\) has failed: ResultTooLarge: too large"):
        list(world.run(courses(world, range(3), chunk=3)))


def test_results_come_while_items_still_do() -> None:
    world = World()
    given = 0

    def slowly() -> Iterator[int]:
        nonlocal given
        for n in range(12):
            world.now += 0.4
            given = n + 1
            yield n

    results = world.run(courses(world, slowly()))
    assert (next(results), given) == ("0", 1)
    assert (next(results), given) == ("1", 2)
    assert numbers(results) == list(range(2, 12))


@pytest.mark.parametrize("is_ordered", [True, False])
def test_an_endless_iterable_gives_results(monkeypatch: pytest.MonkeyPatch, *, is_ordered: bool) -> None:
    monkeypatch.setattr(course, "AHEAD", 50)
    world = World()
    results = world.run(courses(world, itertools.count(), chunk=2, is_ordered=is_ordered))
    assert numbers(itertools.islice(results, 2000)) == list(range(2000))
    assert len(world.jobs) < 2000


def test_no_more_is_enqueued_than_a_bound_while_nobody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "AHEAD", 50)
    world = World()
    world.is_idle = True
    effects = courses(world, itertools.count(), chunk=2).effects()
    reply: Rows | None = None
    for _ in range(200):
        effect = next(effects) if reply is None else effects.send(reply)
        reply = [(7,)] if isinstance(effect, Step) and effect.query == batches.CREATE else ()
        if isinstance(effect, Add):
            reply = [(world._insert(row),) for row in effect.rows]
    assert 50 <= len(world.jobs) <= 50 + course.JOBS_AT_ONCE


def test_a_slow_taker_does_not_keep_items_from_being_enqueued() -> None:
    world = World()

    def items() -> Iterator[int]:
        for n in range(5000):
            world.now += 0.0625
            yield n

    results = world.run(courses(world, items(), chunk=1))
    enqueued = []
    for _ in range(3):
        next(results)
        enqueued.append(len(world.jobs))
        world.now += 60
    assert enqueued == [4, 8, 12]


def test_chunks_that_were_asked_for_stay_whole_when_items_come_slowly() -> None:
    world = World()

    def slowly() -> Iterator[int]:
        for n in range(10):
            world.now += 0.4
            yield n

    assert numbers(world.run(courses(world, slowly(), chunk=4))) == list(range(10))
    assert sizes(world) == [4, 4, 2]


def test_jobs_keep_what_was_said_of_them() -> None:
    world = World()
    jobs = [work.job(0), work.job(1), work.job(2).priority(0), work.job(3).key("k").after(60), work.job(4)]
    assert numbers(world.run(courses(world, jobs, chunk=10))) == list(range(5))
    assert [(row.priority, row.key, row.delay) for row in world.added] == [
        (2, None, 0),
        (0, None, 0),
        (2, "k", 60),
        (2, None, 0),
    ]


@pytest.mark.parametrize("bad", [work.job(1).unique(), work.job(1).depends_on([1]), work.job(1).then(work.job(2))])
def test_jobs_that_belong_to_others_are_refused(bad: Job) -> None:
    world = World()
    with pytest.raises(ValueError, match="can't be unique, wait for others or be followed"):
        list(world.run(courses(world, [bad])))


def test_a_map_needs_a_handler_and_its_jobs() -> None:
    world = World()
    name: Any = "work"
    with pytest.raises(TypeError, match=r"needs a handler, a function under @app\.handler, not 'work'"):
        Course(name, [1], chunk="auto", is_ordered=True)
    with pytest.raises(ValueError, match="was given a job of 'other'"):
        list(world.run(courses(world, [other.job(1)])))
    for chunk in (0, True, "many"):
        given: Any = chunk
        with pytest.raises(ValueError, match="chunk is 'auto' or a whole number"):
            courses(world, [1], chunk=given)


def test_nothing_is_asked_before_the_first_use() -> None:
    world = World()
    assert courses(world, range(3)).id is None
    it = courses(world, range(3))
    assert list(world.run(it)) == ["0", "1", "2"]
    assert (it.id, it.total, it.given) == (7, 3, 3)


def test_what_an_earlier_run_left_is_taken_up_in_its_order() -> None:
    def taken_up(handler: Handler[..., Any], rows: Rows) -> Course:
        it = Course(handler, range(100), chunk=2, is_ordered=True, id=7)
        steps = it.begin()
        next(steps)
        status = batches.BatchStatus(
            id=7, name="map work", created_at=None, is_sealed=False, total=1, ended_at=None,  # type: ignore[arg-type]  # not looked at
            pending=1, running=0, completed=0, failed=0, canceled=0, fired=[],
        )  # fmt: skip
        steps.send([tuple(getattr(status, name) for name in status.__struct_fields__)])
        with pytest.raises(StopIteration):
            steps.send(rows)
        return it

    # Job 1 was cut into 4 and 5, of which 5 was tried again as 6; job 2 was tried again, and another time by somebody else.
    rows = [(1, 4, None), (2, 3, None), (3, 2, None), (4, 2, 1), (5, 2, 1), (6, 2, 5), (7, 3, 2), (8, 3, 2)]
    it = taken_up(work, rows)
    assert [(part.job_id, part.first, part.count) for part in it._waiting.values()] == [
        (4, 0, 2),
        (6, 2, 2),
        (7, 4, 3),
        (3, 7, 2),
    ]
    assert (it.taken, next(it._items)) == (9, 9)
