"""Which job a log record is of: put into the records of `logging`, and into structlog's context where that is loaded.

Every record that is made while a handler runs, in whichever thread and by whatever library, has the attributes
`tasuki_job` (its id), `tasuki_attempt` and `tasuki_handler`; outside of a job they are None.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import Token
from typing import Any, Final, TextIO

from tasuki_mp import wire

JOB_LOGGER: Final = "tasuki_mp.job"
"""The logger above those of `ctx.log`, one for each handler."""

# The names begin like that because `logging` refuses an `extra=` whose names are taken.
_job: wire.RunJob | None = None
Bound = Mapping[str, Token[Any]] | None


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

    logging.setLogRecordFactory(make_with_job)
    if not logging.root.handlers:
        log = logging.getLogger(JOB_LOGGER)
        log.addHandler(_Plain())
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)


def begin(job: wire.RunJob) -> Bound:
    """What is logged from now on is this job's."""
    global _job  # noqa: PLW0603  a process runs one job at a time, and its threads log for it too
    _job = job
    # Who has not loaded it by now has not configured it either.
    if (structlog := sys.modules.get("structlog.contextvars")) is None:
        return None
    bound: Bound = structlog.bind_contextvars(tasuki_job=job.id, tasuki_attempt=job.attempt, tasuki_handler=job.handler)
    return bound


def end(bound: Bound) -> None:
    """The job is over."""
    global _job  # noqa: PLW0603
    _job = None
    if bound is not None and (structlog := sys.modules.get("structlog.contextvars")) is not None:
        structlog.reset_contextvars(**bound)


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
