"""Jobs that were enqueued, as producers hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import psycopg

from tasuki_mp import results
from tasuki_mp.job import Progress, State
from tasuki_mp.store.produce import CancelVerdict

if TYPE_CHECKING:
    from tasuki_mp.client import AsyncClient, Client

T = TypeVar("T")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


class JobHandle:
    """A job that was enqueued."""

    __slots__ = ("_client", "followers", "id", "is_new")

    def __init__(self, job_id: int, client: Client, *, is_new: bool = True, followers: Iterable[int] = ()) -> None:
        self.id = job_id
        self.followers = tuple(JobHandle(follower, client) for follower in followers)
        """The jobs that were enqueued to run after it."""
        self.is_new = is_new
        """False: its unique key was taken, and this is the job that stands."""
        self._client = client

    def __repr__(self) -> str:
        return f"JobHandle({self.id})"

    @overload
    def result(self, timeout: float | None = None) -> Any: ...
    @overload
    def result(self, timeout: float | None = None, *, kind: type[T]) -> T: ...
    def result(self, timeout: float | None = None, *, kind: Any = Any) -> Any:
        """What the handler returned, once the job has completed; `kind` is the type that its JSON becomes.

        Raises TimeoutError after `timeout` seconds, JobFailedError, JobCanceledError, and UnknownJobError for a job that
        is not committed yet or was deleted. The job goes on, whatever is raised.
        """
        return results.wait(self._client, self.id, timeout, kind)

    def status(self, conn: Connection | None = None) -> State | None:
        """Where the job stands; None if there is no such job, or not yet, or not any more."""
        return self._client.status(self.id, conn)

    def progress(self, conn: Connection | None = None) -> Progress | None:
        """How far the job says it is; None while it does not run, or says nothing."""
        return self._client.progress(self.id, conn)

    def cancel(self, conn: Connection | None = None) -> CancelVerdict:
        """Cancel the job; what came of it."""
        return self._client.cancel([self.id], conn)[self.id]


class AsyncJobHandle:
    """A job that was enqueued, for asyncio."""

    __slots__ = ("_client", "followers", "id", "is_new")

    def __init__(self, job_id: int, client: AsyncClient, *, is_new: bool = True, followers: Iterable[int] = ()) -> None:
        self.id = job_id
        self.followers = tuple(AsyncJobHandle(follower, client) for follower in followers)
        """The jobs that were enqueued to run after it."""
        self.is_new = is_new
        """False: its unique key was taken, and this is the job that stands."""
        self._client = client

    def __repr__(self) -> str:
        return f"AsyncJobHandle({self.id})"

    @overload
    async def result(self, timeout: float | None = None) -> Any: ...
    @overload
    async def result(self, timeout: float | None = None, *, kind: type[T]) -> T: ...
    async def result(self, timeout: float | None = None, *, kind: Any = Any) -> Any:
        """What the handler returned, once the job has completed; as `JobHandle.result`."""
        return await results.wait_async(self._client, self.id, timeout, kind)

    async def status(self, conn: AsyncConnection | None = None) -> State | None:
        """Where the job stands; None if there is no such job, or not yet, or not any more."""
        return await self._client.status(self.id, conn)

    async def progress(self, conn: AsyncConnection | None = None) -> Progress | None:
        """How far the job says it is; None while it does not run, or says nothing."""
        return await self._client.progress(self.id, conn)

    async def cancel(self, conn: AsyncConnection | None = None) -> CancelVerdict:
        """Cancel the job; what came of it."""
        return (await self._client.cancel([self.id], conn))[self.id]
