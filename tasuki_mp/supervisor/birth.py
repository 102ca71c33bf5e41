"""How a slot gets a child: started, heard, taken hold of; and the spare that stands ready where starting takes long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from tasuki_mp import wire
from tasuki_mp.supervisor.child import Child, Nursery

T = TypeVar("T")
Born = tuple[Child, wire.Hello]

DISCARD_FOR: Final = 2.0
"""Seconds for children that are of no use to come up and end."""


class ImportFailedError(Exception):
    """A child came up and could not import the application; the text is its traceback."""


class DiedError(Exception):
    """A child was gone before its hello."""


class Births:
    """Gives children to slots. With `keep_spare`, one more child than there are slots waits for the next death."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.keep_spare = False
        self._loop = asyncio.get_running_loop()
        self._spare: asyncio.Task[Born] | None = None
        self._discarding: set[asyncio.Task[None]] = set()

    async def child_for(self, slot: int) -> Born:
        """A child that has said hello. Raises ImportFailedError, or OSError, EOFError, RuntimeError if none comes up."""
        if not self.keep_spare:
            return await self._bear(slot)
        spare, self._spare = self._spare, asyncio.create_task(self._bear(slot), name="spare child")
        if spare is None:
            return await self._bear(slot)
        child, hello = await spare
        child.slot = slot
        return child, hello

    async def stop(self) -> None:
        """Send the spare away, and wait for those that were discarded, also for those that are still to come."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.cancel()
            with contextlib.suppress(asyncio.CancelledError, ImportFailedError, OSError, EOFError, RuntimeError):
                child, _ = await spare
                self._discard(child)
        # An import that hangs lets nothing start and nothing end; the forkserver dies with us all the same.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_FOR):
                while self._discarding:
                    await asyncio.wait(self._discarding)

    async def in_process_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work` returns, run in the one thread that starts and buries children."""
        return await self._loop.run_in_executor(self.nursery.thread, work, *arguments)

    async def _bear(self, slot: int) -> Born:
        starting = asyncio.ensure_future(self.in_process_thread(self.nursery.start, slot))
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._keep(self._discard_when_started(starting))
            raise
        coming: asyncio.Future[wire.Hello] = self._loop.create_future()
        self._loop.add_reader(child.outcomes.fileno(), _listen, child, coming)
        child.future.add_done_callback(lambda future: self._on_loop(_ended, future, coming))
        try:
            hello = await coming
            if hello.import_error:
                raise ImportFailedError(hello.import_error)  # noqa: TRY301  ends like every other failure here
        except DiedError as error:
            self._loop.remove_reader(child.outcomes.fileno())
            child.close()
            raise await self.in_process_thread(self.nursery.bury_unborn, child) from error
        except BaseException:
            self._loop.remove_reader(child.outcomes.fileno())
            self._discard(child)
            raise
        self._loop.remove_reader(child.outcomes.fileno())
        await self.in_process_thread(self.nursery.adopt, child)
        return child, hello

    def _discard(self, child: Child) -> None:
        """Close what belonged to a child that is of no use; without its sockets it ends by itself."""
        child.close()
        self._keep(self._see_off(child))

    async def _see_off(self, child: Child) -> None:
        """Keep the child's executor until the child has done with it.

        What is collected too early takes semaphores along that a child on its way up has yet to open, and it would tell
        the terminal. One that never says hello may hang in its import for ever: not in the process thread.
        """
        returned = asyncio.Event()
        child.future.add_done_callback(lambda _: self._on_loop(returned.set))
        await returned.wait()
        await self.in_process_thread(child.executor.shutdown)

    async def _discard_when_started(self, starting: asyncio.Future[Child]) -> None:
        with contextlib.suppress(OSError, EOFError, RuntimeError):  # then there is nothing to discard
            self._discard(await starting)

    def _on_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the supervisor has ended
            self._loop.call_soon_threadsafe(work, *arguments)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)


def _listen(child: Child, coming: asyncio.Future[wire.Hello]) -> None:
    """The outcome socket of a child that has not said hello is readable."""
    if coming.done():
        return
    try:
        frame, fds = child.receive()
    except BlockingIOError:
        return
    except (wire.ClosedError, OSError) as error:
        coming.set_exception(DiedError(repr(error)))
        return
    except wire.FrameError as error:
        coming.set_exception(RuntimeError(f"the child said something odd before its hello ({error!r})"))
        return
    if not isinstance(frame, wire.Hello):
        coming.set_exception(RuntimeError(f"the child said {type(frame).__name__} before its hello"))
        return
    child.hello(frame, fds)
    coming.set_result(frame)


def _ended(future: Future[None], coming: asyncio.Future[wire.Hello]) -> None:
    """The executor's only task is over."""
    if not coming.done():
        error = None if future.cancelled() else future.exception()
        coming.set_exception(DiedError(repr(error) if error else "it returned"))
