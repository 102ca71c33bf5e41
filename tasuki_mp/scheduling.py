"""What an application schedules: functions of its own, and jobs; checked when they are declared, as far as can be."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import CodeType, FrameType
from typing import Any, Final

import msgspec

from tasuki_mp import schedule, signature
from tasuki_mp.errors import PayloadError, ScheduleError
from tasuki_mp.handlers import Handler, Registry
from tasuki_mp.job import Job, JobRow, row_of
from tasuki_mp.schedule import ScheduleInfo

TICK: Final = "tick"
"""The parameter of a scheduled function that gets the time it was due."""
_SOME_TICK: Final = datetime(2000, 1, 1, tzinfo=UTC)
_IMPORTING: Final = "<frozen importlib._bootstrap>"
"""The file in whose frames modules are imported."""


def declare(registry: Registry, handler: Handler[..., Any], when: str | timedelta, name: str, **times: Any) -> None:
    """Run this handler at these times (see `schedule.info`). Raises ScheduleError."""
    found = schedule.info(name, when, JobRow(handler=handler.name, payload="{}"), **times)

    def make() -> ScheduleInfo:
        # A resource that the function names may be defined below it, so the job is made at the end.
        tick = handler.parameter(TICK)
        wants_tick = tick is not None and signature.resolve(handler.function, tick.annotation) in {datetime, Any}
        try:
            row = handler.job(**({TICK: _SOME_TICK} if wants_tick else {})).row
        except PayloadError as error:
            raise ScheduleError(
                f"schedule {name!r}: nothing gives {handler.name!r} its argument {error.path.removeprefix('$.')} "
                f"({error.reason}): a tick gives it none but tick: datetime; give it a default, or schedule a job of it "
                "with app.schedule_job"
            ) from error
        row = msgspec.structs.replace(row, payload="{}")
        return msgspec.structs.replace(found, job=row, tick_argument=TICK if wants_tick else None)

    _add(registry, name, make)


def declare_job(registry: Registry, job: Job, when: str | timedelta, name: str, **times: Any) -> None:
    """Insert this job at these times. Raises ScheduleError."""
    found = schedule.info(name, when, row_of(job), **times)
    _add(registry, name, lambda: found)


def maker(frame: FrameType | None) -> CodeType | None:
    """The code that makes an object whose `__init__` was called by this frame, past those of its subclasses."""
    while frame is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    return None if frame is None else frame.f_code


def is_declaring(frame: FrameType | None, made_by: CodeType | None) -> bool:
    """Whether this frame's code is part of an application, and not of a program that uses it.

    It is the code that made the application, or is run by the import of a module.
    """
    if frame is not None and frame.f_code is made_by:
        return True
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _add(registry: Registry, name: str, make: Callable[[], ScheduleInfo]) -> None:
    if name in registry.schedules:
        raise ScheduleError(f"schedule {name!r}: is there already; give one of them another name=")
    registry.schedules[name] = make
