"""A durable map: a handler over many items, as jobs of one batch, with its results in order or as they come.

What is done and when is `course`'s matter; here it is done, on blocking connections and for asyncio. What was enqueued is in
the database, so whoever waits may be interrupted and come back by the batch's id.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tasuki_mp.course import Add, Chunk, Course, Give
from tasuki_mp.store import batches, bulk
from tasuki_mp.store.bulk import Intake, cursor, cursor_async, explained
from tasuki_mp.store.steps import Pause, Rows, Step, Steps

if TYPE_CHECKING:
    from tasuki_mp.client import AsyncClient, Client
    from tasuki_mp.handlers import Handler

T = TypeVar("T")


class Map(Iterator[Any]):
    """The results of a map, to be iterated over; `id` takes it up again."""

    def __init__(
        self,
        client: Client,
        handler: Handler[..., Any],
        items: Iterable[Any],
        *,
        chunk: Chunk = "auto",
        ordered: bool = True,
        progress: bool | None = None,
        id: int | None = None,
    ) -> None:
        self._client = client
        self._course = Course(handler, items, chunk=chunk, is_ordered=ordered, id=id)
        self._show = sys.stderr.isatty() if progress is None else progress
        if id is not None:
            client._drive(self._course.begin(), None)
        self._results = self._run()

    def __next__(self) -> Any:
        return next(self._results)

    def __repr__(self) -> str:
        return f"Map({self._course.id}, {self._course.handler.name})"

    @property
    def id(self) -> int:
        """Of its batch, which is made when this or the first result is asked for."""
        known = self._course.id
        return self._client._drive(self._course.begin(), None) if known is None else known

    def _run(self) -> Iterator[Any]:
        course = self._course
        effects = course.effects()
        reply: Rows | None = None
        try:
            with _bar(course, is_shown=self._show) as show:
                while True:
                    try:
                        effect = next(effects) if reply is None else effects.send(reply)
                    except StopIteration:
                        return
                    show()
                    reply = ()
                    match effect:
                        case Step():
                            reply = self._client._drive(_once(effect), None)
                        case Add():
                            reply = self._add(effect)
                        case Pause():
                            time.sleep(effect.seconds)  # noqa: TID251  between two looks: nobody tells of single jobs
                        case Give():
                            yield from effect.values
        except KeyboardInterrupt as error:
            _note(error, course)
            raise

    def _add(self, add: Add) -> Rows:
        with self._client.connection(None) as connection, bulk.transaction(connection), explained():
            ids: Iterable[int] = ()
            if add.rows:
                ids = bulk.insert(connection, Intake(add.rows), is_ours=False, batch_id=self._course.id).ids
            cursor(connection).execute(batches.SEAL, _sealing(self._course, add))
        return [(id,) for id in ids]


class AsyncMap(AsyncIterator[Any]):
    """The results of a map, to be iterated over with `async for`."""

    def __init__(
        self,
        client: AsyncClient,
        handler: Handler[..., Any],
        items: Iterable[Any],
        *,
        chunk: Chunk = "auto",
        ordered: bool = True,
        progress: bool | None = None,
        id: int | None = None,
    ) -> None:
        self._client = client
        self._course = Course(handler, items, chunk=chunk, is_ordered=ordered, id=id)
        self._show = sys.stderr.isatty() if progress is None else progress
        self._turn = asyncio.Lock()
        self._results = self._run()

    async def __anext__(self) -> Any:
        return await anext(self._results)

    def __repr__(self) -> str:
        return f"AsyncMap({self._course.id}, {self._course.handler.name})"

    async def begin(self) -> int:
        """The id of its batch, which is made when this or the first result is asked for. Raises MapError."""
        async with self._turn:  # one batch, also for several tasks
            return await self._client._drive(self._course.begin(), None)

    async def _run(self) -> AsyncIterator[Any]:
        course = self._course
        effects = course.effects()
        reply: Rows | None = None
        try:
            await self.begin()
            with _bar(course, is_shown=self._show) as show:
                while True:
                    try:
                        effect = next(effects) if reply is None else effects.send(reply)
                    except StopIteration:
                        return
                    show()
                    reply = ()
                    match effect:
                        case Step():
                            reply = await self._client._drive(_once(effect), None)
                        case Add():
                            reply = await self._add(effect)
                        case Pause():
                            await asyncio.sleep(effect.seconds)
                        case Give():
                            for value in effect.values:
                                yield value
        except (KeyboardInterrupt, asyncio.CancelledError) as error:
            _note(error, course)
            raise

    async def _add(self, add: Add) -> Rows:
        async with self._client.connection(None) as connection, bulk.transaction_async(connection):
            ids: Iterable[int] = ()
            with explained():
                if add.rows:
                    copied = await bulk.insert_async(
                        connection, Intake(add.rows), is_ours=False, batch_id=self._course.id
                    )
                    ids = copied.ids
                await cursor_async(connection).execute(batches.SEAL, _sealing(self._course, add))
        return [(id,) for id in ids]


def _once(step: Step) -> Steps[Rows]:
    return (yield step)


def _sealing(course: Course, add: Add) -> dict[str, Any]:
    return {"id": course.id, "count": len(add.rows), "is_sealed": add.is_last, "state": None}


def _note(error: BaseException, course: Course) -> None:
    if course.id is not None:
        error.add_note(f"the jobs of map {course.id} go on; take it up again with id={course.id}")


@contextmanager
def _bar(course: Course, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """What shows how far the map is, from the first item on."""
    if not is_shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(course.name, total=course.total)

        def show() -> None:
            progress.update(
                task,
                description=course.name if course.id is None else f"{course.handler.name} (map {course.id})",
                total=course.total,
                completed=course.given,
            )

        show()
        yield show
