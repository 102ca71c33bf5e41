"""Log records of a handler say which job they are of, whoever logs, and leave everybody's own fields alone."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator

import pytest
import structlog

from tasuki_mp import Context, add_running_job, wire
from tasuki_mp.child import joblog

JOB = wire.RunJob(7, 1, "resize", "default", 2, 5, "{}")
FORMAT = "%(name)s %(tasuki_job)s %(tasuki_attempt)s %(tasuki_handler)s %(message)s"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a handler that the application configured has written."""
    factory = logging.getLogRecordFactory()
    stream = io.StringIO()
    configured = logging.StreamHandler(stream)
    configured.setFormatter(logging.Formatter(FORMAT))
    library = logging.getLogger("library")
    library.addHandler(configured)
    joblog.install()
    yield stream
    logging.setLogRecordFactory(factory)
    library.removeHandler(configured)
    job_logger = logging.getLogger(joblog.JOB_LOGGER)
    for handler in list(job_logger.handlers):
        job_logger.removeHandler(handler)
    job_logger.setLevel(logging.NOTSET)


def test_records_are_of_the_job_that_runs(lines: io.StringIO) -> None:
    log = logging.getLogger("library")
    log.warning("before")
    joblog.begin(JOB)
    log.warning("during", extra={"job": 1, "attempt": 2, "job_id": 3})
    thread = threading.Thread(target=log.warning, args=["elsewhere"])
    thread.start()
    thread.join()
    joblog.end()
    log.warning("after")
    assert lines.getvalue().splitlines() == [
        "library None None None before",
        "library 7 2 resize during",
        "library 7 2 resize elsewhere",
        "library None None None after",
    ]


def test_the_contexts_logger_is_heard_once(lines: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    ctx = Context(job_id=7, lease_no=1, handler="resize", queue="default", attempt=2, max_attempts=5)
    heard = logging.StreamHandler(lines)
    heard.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger(joblog.JOB_LOGGER).addHandler(heard)
    joblog.begin(JOB)
    ctx.log.warning("%d of %d", 1, 2)
    joblog.end()
    assert lines.getvalue() == "tasuki_mp.job.resize 7 2 resize 1 of 2\n"
    assert capsys.readouterr().err == "", "pytest has configured the root logger"


def test_structlog_has_it_too(lines: io.StringIO) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        structlog.contextvars.bind_contextvars(mine=1)
        log = structlog.get_logger()
        joblog.begin(JOB)
        log.info("during", tasuki_job="own")
        log.info("again")
        joblog.end()
        log.info("after")
        structlog.contextvars.clear_contextvars()
    facts = {"mine": 1, "log_level": "info"}
    job = {"tasuki_job": 7, "tasuki_attempt": 2, "tasuki_handler": "resize"}
    assert events == [
        {**job, **facts, "tasuki_job": "own", "event": "during"},
        {**job, **facts, "event": "again"},
        {**facts, "event": "after"},
    ]


def test_a_processor_says_it_in_threads_too_and_nothing_outside_of_a_job() -> None:
    with structlog.testing.capture_logs(processors=[add_running_job]) as events:
        log = structlog.get_logger()
        log.info("before")
        joblog.begin(JOB)
        thread = threading.Thread(target=log.info, args=["during"], kwargs={"tasuki_attempt": "own"})
        thread.start()
        thread.join()
        joblog.end()
    assert events == [
        {"event": "before", "log_level": "info"},
        {
            "event": "during",
            "log_level": "info",
            "tasuki_job": 7,
            "tasuki_attempt": "own",
            "tasuki_handler": "resize",
        },
    ]


def test_without_structlog_no_job_pays_for_it(lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "find_spec", lambda _: None)
    joblog.install()
    joblog.begin(JOB)
    assert structlog.contextvars.get_contextvars() == {}
    joblog.end()
