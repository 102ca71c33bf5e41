"""`tasuki-mp replay`: a stored job's handler, run in the foreground of this terminal, without touching the job."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Final

import click
import msgspec

from tasuki_mp.child.calling import runnable
from tasuki_mp.child.context import Context
from tasuki_mp.child.each import call_each, is_list
from tasuki_mp.child.resources import Resources
from tasuki_mp.child.threads import ThreadBudget, limit_native_threads
from tasuki_mp.cli import text
from tasuki_mp.cli.database import database_options, open_connection, say_which
from tasuki_mp.cli.selection import ID
from tasuki_mp.config import ExitCode, run_config
from tasuki_mp.errors import ConfigError, PayloadError, TasukiError
from tasuki_mp.followups import FollowUps
from tasuki_mp.handlers import Handler, encode_result, load_app
from tasuki_mp.limits import read_limits
from tasuki_mp.outcome import Cancel, Retry, Snooze
from tasuki_mp.store import look
from tasuki_mp.store.look import JobInfo

_OWN_FOLDER: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep


@click.command(short_help="Run a stored job here, without touching it.")
@click.argument("id", type=ID, metavar="ID")
@click.option("--app", metavar="MODULE:NAME", help="The application, like shop.jobs:app. Required, here or in a file.")
@click.option("--app-dir", metavar="DIR", help="Where to import it from; else the working directory.")
@click.option("--pdb", "is_debugged", is_flag=True, help="Where it raises, start the debugger.")
@database_options
def replay(
    dsn: str | None, config_file: Path | None, id: int, app: str | None, app_dir: str | None, is_debugged: bool
) -> int:
    """Run a stored job's handler in this terminal, with its payload and its checkpoint.

    The job may wait, run or have ended; its row is not touched, and neither progress nor checkpoints nor jobs that the
    handler enqueues through its context are written. Native libraries use as many threads as the job has units.
    Works under any profiler: python -m cProfile -m tasuki_mp replay 7
    """
    config = run_config({"app": app, "app-dir": app_dir}, dsn="", config_file=config_file)
    with open_connection(dsn, config_file, name="replay") as (database, conn):
        say_which(database)
        found = look.job(conn, id)
        checkpoint = look.checkpoint(conn, id)
    if found is None:
        raise TasukiError(f"there is no job {id}")
    job, _ = found
    limit_native_threads()
    application = load_app(config.app, config.app_dir or "")
    handler = application.registry.handlers.get(job.handler)
    if handler is None:
        raise ConfigError(f"{config.app} has no handler {job.handler!r}, which job {id} asks for")
    cpus = _cpus(handler, job)
    resources = Resources(application.registry.resources)
    followups = FollowUps()
    started = perf_counter()
    try:
        value = _call(handler, job, resources, checkpoint, cpus, followups)
        result = None if isinstance(value, Retry | Snooze | Cancel) else encode_result(value)
    except PayloadError as error:
        raise TasukiError(f"job {id}: {error}") from error
    except Exception as error:  # noqa: BLE001  a handler may raise anything
        return _raised(error, perf_counter() - started, is_debugged=is_debugged)
    finally:
        resources.close()
        followups.close()
    took = text.duration(perf_counter() - started)
    if followups.count:
        click.echo(f"asked for {followups.count} follow-up jobs, which are not inserted", err=True)
    match value:
        case Retry() | Snooze() | Cancel():
            click.echo(f"asked for {type(value).__name__} after {took}", err=True)
        case _:
            click.echo(f"returned after {took}", err=True)
            click.echo(text.json_line(msgspec.Raw((result or "null").encode())))
    return ExitCode.OK


def _call(
    handler: Handler[..., Any],
    job: JobInfo,
    resources: Resources,
    checkpoint: str | None,
    cpus: int,
    followups: FollowUps,
) -> Any:
    injected: dict[str, Any] = {}
    for parameter, resource in handler.injections:
        if resource is None:
            injected[parameter] = Context(
                job_id=job.id,
                lease_no=job.lease_no,
                handler=job.handler,
                queue=job.queue,
                attempt=max(1, job.attempt),
                max_attempts=job.max_attempts,
                checkpoint=checkpoint,
                cpus=cpus,
                followups=followups,
            )
        else:
            resources.build(resource)
            injected[parameter] = resources.get(resource)

    function, is_async = runnable(handler, followups)

    def call(arguments: dict[str, Any]) -> Any:
        return asyncio.run(function(**arguments)) if is_async else function(**arguments)

    threads = ThreadBudget()
    if cpus > 1:
        threads.raise_to(cpus)
    try:
        if is_list(job.payload):
            return call_each(handler, job.payload, injected, call)
        return call({**handler.decode(job.payload), **injected})
    finally:
        if cpus > 1:
            threads.lower()


def _cpus(handler: Handler[..., Any], job: JobInfo) -> int:
    """The units that a supervisor would give it."""
    declared = handler.info.policy.limits
    try:
        limits = declared if job.limits is None else read_limits(job.limits).over(declared)
    except ValueError as error:
        raise TasukiError(f"job {job.id}: its limits can't be used: {error}") from error
    return limits.cpus or 1


def _raised(error: Exception, took: float, *, is_debugged: bool) -> int:
    users = _users_part(error.__traceback__)
    traceback.print_exception(error.with_traceback(users))
    click.echo(f"raised {type(error).__name__} after {text.duration(took)}", err=True)
    if is_debugged and users is not None:
        import pdb  # noqa: T100  that is what was asked for

        sys.stdout.flush()
        pdb.post_mortem(users)
    return ExitCode.FAILED


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our own frames and asyncio's before the handler's."""
    first = trace
    while first is not None:
        name = first.tb_frame.f_code.co_filename
        if not name.startswith(_OWN_FOLDER) and os.path.dirname(name) != os.path.dirname(asyncio.__file__):
            return first
        first = first.tb_next
    return trace
