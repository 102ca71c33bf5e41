"""Fire the ticks of schedules here and now, with the statements that supervisors use, in the caller's transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg

from tasuki_mp.handlers import Application
from tasuki_mp.store import schedules
from tasuki_mp.store.schedules import Ticked
from tasuki_mp.store.steps import drive
from tasuki_mp.testing.inline import declare

Connection = psycopg.Connection[Any]


def fire_ticks(app: Application, conn: Connection, *, now: datetime | None = None) -> list[Ticked]:
    """Decide every tick that is due by `now`, else by the database's clock, and insert the jobs of those that fire.

    Of the application's schedules, and of those that were stored for its handlers. As in production, ticks count from
    when a schedule was first declared (by `declare`, `run_due` or this function), and of those that are more than
    `misfire_after` late only the last one fires, or none. `run_due` with the same `now` runs the jobs.
    """
    declare(app, conn)
    names = [info.name for info in app.registry.schedule_infos()]
    handlers = list(app.registry.handlers)
    return drive(conn, schedules.fire_own(uuid4(), names=names, handlers=handlers, now=now))
