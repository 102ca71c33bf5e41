"""Every error that tasuki-mp raises, in one tree under `TasukiError`, and what it raises in handlers to interrupt them.

Each error carries its facts as attributes, and its text says what to do next.
"""

from __future__ import annotations

from typing import Any


class TasukiError(Exception):
    """The root: whatever tasuki-mp raises on purpose is one of these."""


class ConfigError(TasukiError):
    """An option, environment variable or configuration file is wrong. The CLI exits with 2."""


class ScheduleError(ConfigError):
    """A schedule can't be: no such cron expression or time zone, a name that is taken, an end before its start."""


class HandlerError(TasukiError):
    """A handler or resource is declared in a way that can't be supported; raised when its module is imported."""


class ConflictError(TasukiError):
    """A job with that unique key is there already, and `on_conflict="raise"` asked to hear of it. Nothing was inserted."""

    def __init__(self, job_id: int, key: str | None = None) -> None:
        super().__init__(f"job {job_id} has {'this unique key' if key is None else f'the unique key {key!r}'} already")
        self.job_id = job_id
        self.key = key
        """With the handler in front, where it is known."""


class MapError(TasukiError):
    """A map can't give its results: one of its jobs has failed or was canceled. `id` takes it up again."""

    def __init__(self, map_id: int, reason: str) -> None:
        super().__init__(f"{reason} (map {map_id})")
        self.id = map_id


class BatchError(TasukiError):
    """There is no batch with that id, or of that name."""

    def __init__(self, batch_id: int | str) -> None:
        super().__init__(f"there is no batch {batch_id!r}")
        self.batch_id = batch_id


class JobFailedError(TasukiError):
    """A job whose result was asked for has failed; `error` is what was recorded: kind, type, message, traceback …"""

    def __init__(self, job_id: int, error: dict[str, Any]) -> None:
        super().__init__(f"job {job_id} failed: {error.get('type', '?')}: {error.get('message', '')}".rstrip(": "))
        self.job_id = job_id
        self.error = error


class JobCanceledError(TasukiError):
    """A job whose result was asked for was canceled."""

    def __init__(self, job_id: int, error: dict[str, Any]) -> None:
        super().__init__(f"job {job_id} was canceled: {error.get('message') or 'nobody said why'}")
        self.job_id = job_id
        self.error = error


class UnknownJobError(TasukiError):
    """There is no such job: not yet, because the transaction that enqueues it is open, or not any more."""

    def __init__(self, job_id: int) -> None:
        super().__init__(
            f"there is no job {job_id}: either the transaction that enqueues it has not been committed, or it was deleted"
        )
        self.job_id = job_id


class PayloadError(TasukiError):
    """A payload does not fit its handler's signature, or JSON, or the size limit.

    `path` names the argument, like `$.width` or `$.boxes[3].x`; `$` alone is the payload as a whole.
    """

    def __init__(self, handler: str, path: str, reason: str) -> None:
        super().__init__(f"handler {handler!r}: {path}: {reason}")
        self.handler = handler
        self.path = path
        self.reason = reason


class LineError(TasukiError):
    """A line of a file of jobs can't be used; nothing of its transaction was enqueued. The CLI exits with 2."""

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(f"{source}, line {line}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


class LockedError(TasukiError):
    """Another run holds the lock of that name. The CLI exits with 9."""


class ResultError(TasukiError):
    """A handler's return value can't be stored.

    `kind` is `ResultNotSerialisable`, `ResultTooLarge` or `ResultNotStorable`.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


class CheckpointError(TasukiError):
    """A state can't be kept as a checkpoint, or a kept one does not fit the type that was asked for; says where."""


class UnknownHandlerError(TasukiError):
    """No handler of that name is known to the database, and no queue was given for it."""


class EnqueueInHandlerError(TasukiError):
    """`app.enqueue` was called inside a handler without `conn=`."""


class DatabaseError(TasukiError):
    """Postgres could not be reached, or refused; the cause is chained. The CLI exits with 4."""


class SchemaError(DatabaseError):
    """The database's schema is newer than this program, older than it may use, or was changed by hand."""


class EmbeddedError(DatabaseError):
    """The embedded PostgreSQL could not be installed, started or stopped."""


class JobNotRunningError(TasukiError):
    """What was asked can only be said of a running job. `state` is the job's; None: there is no such job."""

    def __init__(self, job_id: int, state: str | None) -> None:
        super().__init__(f"there is no job {job_id}" if state is None else f"job {job_id} does not run: it is {state}")
        self.job_id = job_id
        self.state = state


class NoAnswerError(TasukiError):
    """The supervisor that runs a job did not answer in time: it, its host or its connection is down, or very busy."""

    def __init__(self, job_id: int, host: str, seconds: float) -> None:
        super().__init__(
            f"the supervisor that runs job {job_id}{f' on {host}' if host else ''} has not answered within {seconds:g} s; "
            "`tasuki-mp status` says when it was last heard of"
        )
        self.job_id = job_id
        self.host = host
        self.seconds = seconds


class CommandError(TasukiError):
    """The supervisor that runs a job says that it can't do what was asked, and why."""

    def __init__(self, job_id: int, reason: str) -> None:
        super().__init__(f"job {job_id}: {reason}")
        self.job_id = job_id
        self.reason = reason


class AppImportError(TasukiError):
    """The application could not be imported; `traceback` is the child's. The CLI exits with 5."""

    def __init__(self, app: str, traceback: str) -> None:
        super().__init__(f"the application {app!r} could not be imported:\n{traceback.rstrip()}")
        self.app = app
        self.traceback = traceback


# ── raised in handlers ────────────────────────────────────────────────────────────────────────────────────────────────
# Not Exceptions: an `except Exception` around each step of a long loop would swallow them, and the loop would go on.


class SoftTimeout(BaseException):
    """Raised in a handler, wherever it is, when its `soft_timeout` has passed: come to an end."""


class Canceled(BaseException):
    """Raised in a handler, wherever it is, when somebody asked to cancel its job: come to an end.

    A handler may also raise it by itself where `ctx.should_stop` is true. After a cancel the job is canceled; at a
    shutdown it is given back without having used an attempt.
    """
