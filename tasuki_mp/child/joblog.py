"""Which job a log record is of: put into the records of `logging`, and into structlog's context where that is installed.

Every record that is made while a handler runs, in whichever thread and by whatever library, has the attributes
`tasuki_job` (its id), `tasuki_attempt` and `tasuki_handler`; outside of a job they are None.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar, Token
from importlib.util import find_spec
from typing import Any, Final, TextIO

from tasuki_mp import wire

JOB_LOGGER: Final = "tasuki_mp.job"
"""The logger above those of `ctx.log`, one for each handler."""

# The names begin like that because `logging` refuses an `extra=` whose names are taken.
_job: wire.RunJob | None = None
_has_structlog = False
# structlog takes every context variable whose name begins like that. Set before it is loaded, they are there for whoever
# is the first to import it in a handler.
_structlog_job: Final[ContextVar[int]] = ContextVar("structlog_tasuki_job")
_structlog_attempt: Final[ContextVar[int]] = ContextVar("structlog_tasuki_attempt")
_structlog_handler: Final[ContextVar[str]] = ContextVar("structlog_tasuki_handler")
_bound: tuple[Token[int], Token[int], Token[str]] | None = None


def install() -> None:
    """Let all records of this process say which job they are of, and `ctx.log` be heard without any configuration."""
    make = logging.getLogRecordFactory()

    def make_with_job(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        job = _job
        record.tasuki_job = None if job is None else job.id
        record.tasuki_attempt = None if job is None else job.attempt
        record.tasuki_handler = None if job is None else job.handler
        return record

    global _has_structlog  # noqa: PLW0603
    logging.setLogRecordFactory(make_with_job)
    _has_structlog = find_spec("structlog") is not None
    if not logging.root.handlers:
        log = logging.getLogger(JOB_LOGGER)
        log.addHandler(_Plain())
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)


def begin(job: wire.RunJob) -> None:
    """What is logged from now on is this job's."""
    global _job, _bound  # noqa: PLW0603  a process runs one job at a time, and its threads log for it too
    _job = job
    if _has_structlog:
        _bound = (
            _structlog_job.set(job.id),
            _structlog_attempt.set(job.attempt),
            _structlog_handler.set(job.handler),
        )


def end() -> None:
    """The job is over."""
    global _job, _bound  # noqa: PLW0603
    _job = None
    if _bound is not None:
        _structlog_job.reset(_bound[0])
        _structlog_attempt.reset(_bound[1])
        _structlog_handler.reset(_bound[2])
        _bound = None


def add_running_job(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for `structlog.configure`: says in which job a record is made, in whichever thread.

    Context variables do not reach threads that a handler starts; this does. Adds nothing outside of a job.
    """
    if (job := _job) is not None:
        event.setdefault("tasuki_job", job.id)
        event.setdefault("tasuki_attempt", job.attempt)
        event.setdefault("tasuki_handler", job.handler)
    return event


class _Plain(logging.StreamHandler[TextIO]):
    """Level and message to standard error, for applications that have configured nothing."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        # A handler that a job configures gets the record too.
        self.addFilter(lambda _record: not logging.root.handlers)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # as in logging: whatever standard error is now
        return sys.stderr
