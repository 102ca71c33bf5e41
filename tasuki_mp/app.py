"""`Tasuki`, the application object: handlers and resources are registered on it, and jobs enqueued through it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from tasuki_mp import handlers, scheduling
from tasuki_mp.backoff import Backoff
from tasuki_mp.declared import DEFAULT_BACKOFF, BackoffFunction, ExceptionTypes, RetryRule
from tasuki_mp.errors import ConfigError, EnqueueInHandlerError, HandlerError
from tasuki_mp.handlers import Handler, Registry
from tasuki_mp.job import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_MAX_CRASHES,
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    Job,
)
from tasuki_mp.outcome import DEFAULT_CANCEL_GRACE, DEFAULT_MAX_INTERRUPTIONS
from tasuki_mp.payload import DEFAULT_MAX_TEXT
from tasuki_mp.schedule import MISFIRE_AFTER, Duration, Misfire, Overlap
from tasuki_mp.steering import Steering

if TYPE_CHECKING:
    # What a child imports is paid for by every job: the client, and psycopg with it, waits for the first enqueue.
    import psycopg

    from tasuki_mp.batching import Batch
    from tasuki_mp.client import Client, JobHandle
    from tasuki_mp.mapping import Map
    from tasuki_mp.store.copying import IdRanges
    from tasuki_mp.store.produce import CancelVerdict
    from tasuki_mp.store.steps import Steps

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Tasuki(Steering):
    """An application: a registry of handlers and resources, and the way to enqueue their jobs.

    Makes no connection and reads no configuration until the first enqueue. `modules` are those that hold further
    handlers; they are imported by `load()`, which the program calls. `dsn` goes before the environment's; `max_payload`
    and `max_result` are bytes of JSON text. `version` is the application's own, recorded with its handlers.
    """

    def __init__(
        self,
        *,
        modules: Iterable[str] = (),
        dsn: str | None = None,
        max_payload: int = DEFAULT_MAX_TEXT,
        max_result: int = DEFAULT_MAX_TEXT,
        version: str = "",
    ) -> None:
        if isinstance(modules, str):
            raise ConfigError(f"modules is a list of names; write modules=[{modules!r}]")
        self.modules = tuple(modules)
        self.dsn = dsn
        self.max_result = max_result
        self.version = version
        self.registry = Registry(max_payload=max_payload, max_result=max_result)
        self._client: Client | None = None
        self._made_by = scheduling.maker(sys._getframe(1))

    @overload
    def handler(self, function: Callable[P, R], /) -> Handler[P, R]: ...
    @overload
    def handler(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        max_crashes: int = DEFAULT_MAX_CRASHES,
        backoff: Backoff | BackoffFunction = DEFAULT_BACKOFF,
        retry_on: ExceptionTypes = (),
        fail_on: ExceptionTypes = (),
        fence: Literal["wait", "kill"] = "wait",
        timeout: timedelta | float | None = None,
        soft_timeout: timedelta | float | None = None,
        memory: str | int | None = None,
        cpus: int | None = None,
        cancel_grace: timedelta | float = DEFAULT_CANCEL_GRACE,
        max_interruptions: int = DEFAULT_MAX_INTERRUPTIONS,
        on_error: RetryRule | None = None,
        on_timeout: RetryRule | None = None,
        on_memory: RetryRule | None = None,
        on_crash: RetryRule | None = None,
        on_lost: RetryRule | None = None,
        on_interrupted: RetryRule | None = None,
        on_bad_payload: RetryRule | None = None,
        on_bad_result: RetryRule | None = None,
        on_failed: Handler[..., Any] | str | None = None,
    ) -> Callable[[Callable[P, R]], Handler[P, R]]: ...
    def handler(self, function: Callable[P, R] | None = None, /, **options: Any) -> Any:
        """Register a function as a handler; works with and without parentheses.

        `name`: that of its jobs, else the function's. `queue`, `priority` (0 first … 3 last), `max_attempts` (a run
        counts when it is leased) and `max_crashes` (deaths of the process) are what its jobs get. `backoff` is a
        `Backoff`, or a function of (attempt, exception) that gives seconds or a timedelta; after the death of its
        process, the default. With `retry_on`, only those exceptions are tried again; those in `fail_on` never are.
        `fence="kill"` stops a running job when its lease can't be trusted any more, for handlers with effects outside
        that must never overlap.

        What a job may take: `timeout` and `soft_timeout` (seconds or a timedelta), `memory` (bytes or `"2GiB"`, beyond
        its child's size at its start), `cpus` (units of the host's `--procs`, and threads for native libraries).
        `cancel_grace` is what a running job gets to end by itself when it is asked to. What follows on a kind of
        failure is said by one rule each, `Retry(…)` or `"fail"`: `on_memory=Retry(memory="x2")`. `on_failed` is another
        handler, a job of which follows when a job of this one finally fails; its argument is a `FailedJob`.

        Raises HandlerError, with the reason, for a function that can't be one.
        """
        if function is not None:
            return self.registry.add_handler(function)
        return lambda decorated: self.registry.add_handler(decorated, **options)

    @overload
    def resource(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def resource(
        self, /, *, name: str | None = None, eager: bool = False
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def resource(
        self, function: Callable[P, R] | None = None, /, *, name: str | None = None, eager: bool = False
    ) -> Any:
        """Register a function that builds something handlers share; works with and without parentheses.

        Called once per child, when a job first needs it, or at the child's start with `eager=True`. A generator
        function yields it and runs the rest when the child ends. It is injected wherever a handler, or another
        resource, has a parameter of its name. Returns the function itself.
        """

        def register(decorated: Callable[P, R]) -> Callable[P, R]:
            self.registry.add_resource(decorated, name, is_eager=eager)
            return decorated

        return register if function is None else register(function)

    def schedule(
        self,
        when: str | timedelta,
        /,
        *,
        name: str | None = None,
        tz: str = "UTC",
        misfire: Misfire = "last",
        misfire_after: Duration = MISFIRE_AFTER,
        jitter: Duration = 0.0,
        overlap: Overlap = "allow",
        start: datetime | None = None,
        end: datetime | None = None,
        **options: Any,
    ) -> Callable[[Callable[P, R]], Handler[P, R]]:
        """Run a function at these times, as a job; the jobs that it yields are inserted when it completes.

        `when` is a cron expression of five or six fields in the time zone `tz`, a word such as `@daily`, or an interval
        (`every 90s`, a timedelta). A tick that is more than `misfire_after` late does not fire, except the last of such
        with `misfire="last"`. A tick's job is due up to `jitter` later, at random. With `overlap="skip"` a tick does
        not fire while a job of an earlier one, or one that it yielded, is alive. `start` and `end` bound the ticks.

        The function becomes a handler with these `options`; above `@app.handler` they are given there. Its one argument
        that is no injection may be `tick: datetime`. `name` is the schedule's, else the handler's. Raises ScheduleError.
        """
        times = {
            "tz": tz,
            "misfire": misfire,
            "misfire_after": misfire_after,
            "jitter": jitter,
            "overlap": overlap,
            "start": start,
            "end": end,
        }

        def declare(decorated: Callable[P, R]) -> Handler[P, R]:
            if not isinstance(decorated, Handler):
                handler = self.registry.add_handler(decorated, **options)
            elif options:
                raise HandlerError(f"handler {decorated.name!r}: give {', '.join(options)} to @app.handler")
            else:
                handler = decorated
            scheduling.declare(self.registry, handler, when, name or handler.name, **times)
            return handler

        return declare

    def schedule_job(
        self,
        job: Job,
        when: str | timedelta,
        /,
        *,
        name: str,
        tz: str = "UTC",
        misfire: Misfire = "last",
        misfire_after: Duration = MISFIRE_AFTER,
        jitter: Duration = 0.0,
        overlap: Overlap = "allow",
        start: datetime | None = None,
        end: datetime | None = None,
        stored: bool | None = None,
        conn: psycopg.Connection[Any] | None = None,
    ) -> None:
        """Insert this job at these times; see `schedule`.

        While a module is imported, and in the code that makes the application, this declares: the schedule is part of
        the application's release. Anywhere else, at run time, it is stored in the database, as `Client.schedule_job`
        does, with `conn` in a transaction of yours. `stored` says which, whatever the place. Raises ScheduleError.
        """
        times: dict[str, Any] = {
            "tz": tz,
            "misfire": misfire,
            "misfire_after": misfire_after,
            "jitter": jitter,
            "overlap": overlap,
            "start": start,
            "end": end,
        }
        if stored is None:
            stored = conn is not None or not scheduling.is_declaring(sys._getframe(1), self._made_by)
        if stored:
            self.client.schedule_job(job, when, name=name, conn=conn, **times)
        elif conn is not None:
            raise ValueError(
                f"schedule {name!r}: what is only declared is not written on a connection; leave out conn="
            )
        else:
            scheduling.declare_job(self.registry, job, when, name, **times)

    def load(self) -> None:
        """Import `modules` and check every handler and resource. Raises what the imports raise, and HandlerError."""
        for module in self.modules:
            importlib.import_module(module)
        self.registry.check()

    @property
    def client(self) -> Client:
        """The client that `enqueue` uses; it connects when it first has to."""
        if self._client is None:
            from tasuki_mp.client import Client

            self._client = Client(self.dsn)
        return self._client

    def enqueue(self, job: Job, conn: psycopg.Connection[Any] | None = None) -> JobHandle:
        """Insert a job: on the application's own connection, or inside the transaction of `conn`."""
        self._refuse_in_handler(conn)
        return self.client.enqueue(job, conn)

    def enqueue_many(self, jobs: Iterable[Job], conn: psycopg.Connection[Any] | None = None) -> IdRanges:
        """Insert all jobs of an iterable, of any length, in constant memory: all of them or none.

        In one transaction of its own, or inside that of `conn`.
        """
        self._refuse_in_handler(conn)
        return self.client.enqueue_many(jobs, conn)

    def enqueue_batch(self, jobs: Iterable[Job], conn: psycopg.Connection[Any] | None = None, **options: Any) -> Batch:
        """Enqueue jobs together under an id, with counts and follow-up jobs; see `Client.enqueue_batch`."""
        self._refuse_in_handler(conn)
        return self.client.enqueue_batch(jobs, conn, **options)

    def map(self, handler: Handler[..., Any], items: Iterable[Any] = (), **options: Any) -> Map:
        """Run a handler over many items as jobs, and iterate over their results; see `Client.map`."""
        self._refuse_in_handler(None)
        return self.client.map(handler, items, **options)

    def cancel(self, *ids: int, conn: psycopg.Connection[Any] | None = None) -> dict[int, CancelVerdict]:
        """Cancel jobs by id; for each what came of it: canceled, requested (it runs), finished, or unknown."""
        return self.client.cancel(ids, conn)

    def _drive(self, steps: Steps[T], conn: psycopg.Connection[Any] | None) -> T:
        return self.client._drive(steps, conn)

    @staticmethod
    def _refuse_in_handler(conn: object) -> None:
        if conn is None and handlers.running_job is not None:
            raise EnqueueInHandlerError(
                f"{handlers.running_job} called enqueue without conn=. That job would exist even if this attempt fails "
                "and runs again: use ctx.enqueue, which inserts follow-up jobs together with this one's completion, or "
                "pass conn= to insert in a transaction of your own"
            )
