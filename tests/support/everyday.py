"""An application that does what handlers are meant to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tasuki_mp import Backoff, Cancel, Context, Retry, Snooze, Tasuki, add_running_job

app = Tasuki(version="7")


@app.handler
def who() -> int:
    """The pid of the child."""
    return os.getpid()


@app.handler
def say(text: str) -> None:
    """Print: from Python, from below it, and from a subprocess."""
    print(text)
    os.write(2, f"below: {text}\n".encode())
    subprocess.run(["echo", f"subprocess: {text}"], check=True)


@app.handler(backoff=Backoff(factor=0), max_attempts=3)
def ask(what: str, ctx: Context) -> Any:
    """Ask for something else than completion, the first time."""
    match what:
        case "retry" if ctx.attempt == 1:
            return Retry()
        case "retry soon" if ctx.attempt == 1:
            return Retry(0.2)
        case "snooze" if ctx.lease_no == 1:
            return Snooze(0)
        case "snooze shortly" if ctx.lease_no == 1:
            return Snooze(0.2)
        case "cancel":
            return Cancel("no longer wanted")
    return {"attempt": ctx.attempt, "is_last": ctx.is_last_attempt, "lease_no": ctx.lease_no, "queue": ctx.queue}


def _after(_attempt: int, error: BaseException) -> float:
    return 0.0 if isinstance(error, OSError) else 3600.0


@app.handler(max_attempts=3, backoff=_after, fail_on=(TypeError,))
def picky(error: str) -> None:
    """Raise by name: what follows is up to the exception's type."""
    raise {"OSError": OSError, "ValueError": ValueError, "TypeError": TypeError}[error](error)


@app.handler
def log_structured() -> list[dict[str, Any]]:
    """What a library that is imported only here puts into its records: in this thread, in a task, and in a thread."""
    import structlog

    seen: list[dict[str, Any]] = []

    def note(_logger: object, _method: str, event: Any) -> Any:
        seen.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, note])
    log = structlog.get_logger()
    log.info("handler")
    asyncio.run(asyncio.to_thread(log.info, "task"))
    structlog.configure(processors=[add_running_job, note])
    with ThreadPoolExecutor() as pool:
        pool.submit(log.info, "thread").result()
    return seen


@app.handler
async def later(text: str) -> str:
    """An async handler."""
    await asyncio.sleep(0)
    return text


@app.resource
def notebook() -> Iterator[list[int]]:
    """Built once per child; says so, and when it is closed."""
    print("notebook opened", os.getpid())
    yield []
    print("notebook closed", os.getpid())


@app.handler
def jot(number: int, notebook: list[int]) -> list[int]:
    """Use a resource that remembers."""
    notebook.append(number)
    return notebook


@app.handler
def enqueue_inside() -> None:
    """What a handler must not do without conn=."""
    app.enqueue(who.job())


@app.handler
def length(text: str) -> int:
    """How long the text arrived."""
    return len(text)


@app.handler
def environment(name: str) -> str | None:
    """A variable of the child's environment."""
    return os.environ.get(name)
