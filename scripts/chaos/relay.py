"""A relay between one supervisor and Postgres that loses what it is told to lose. A Unix socket on either side."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

SOCKET: Final = ".s.PGSQL.5432"
_PIECE: Final = 64 * 1024


class Relay:
    """Listens on a socket in `folder`; runs on a thread of its own until closed."""

    def __init__(self, folder: Path, server: Callable[[], Path]) -> None:
        folder.mkdir()
        self.folder = folder
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open: asyncio.Event = asyncio.Event()
        self._is_open.set()
        self._lose_replies = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()
        self._on_loop(self._listen())

    def cut(self) -> None:
        """Break every connection now, in the middle of whatever it carries."""
        self._on_loop(self._cut())

    def lose_replies(self) -> None:
        """Pass on what clients ask, lose the next thing the server says on each connection, and break that connection."""
        self._on_loop(self._set_losing())

    def stand_still(self) -> None:
        """Carry nothing in either direction, without breaking anything: a black hole."""
        self._on_loop(self._hold())

    def go_on(self) -> None:
        """The end of `stand_still`."""
        self._on_loop(self._release())

    def close(self) -> None:
        self._on_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_unix_server(self._connected, self.folder / SOCKET)

    async def _connected(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(to_client)
        to_server: asyncio.StreamWriter | None = None
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server())
            self._writers.add(to_server)
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._carry(from_client, to_server, is_reply=False)),
                    asyncio.ensure_future(self._carry(from_server, to_client, is_reply=True)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        except OSError:
            pass  # no server just now: the client sees its connection end
        finally:
            for writer in (to_client, to_server):
                if writer is not None:
                    self._writers.discard(writer)
                    writer.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_PIECE):
                await self._is_open.wait()
                if is_reply and self._lose_replies:
                    return
                sink.write(data)
                await sink.drain()

    async def _cut(self) -> None:
        self._lose_replies = False
        for writer in list(self._writers):
            writer.transport.abort()

    async def _set_losing(self) -> None:
        self._lose_replies = True
        self._loop.call_later(0.3, self._stop_losing)

    def _stop_losing(self) -> None:
        self._lose_replies = False

    async def _hold(self) -> None:
        self._is_open.clear()

    async def _release(self) -> None:
        self._is_open.set()

    async def _end(self) -> None:
        self._listener.close()
        self._is_open.set()
        await self._cut()
        while self._tasks:
            await asyncio.wait(self._tasks)
