"""An application with schedules: `tests.support.planned:app`. They tick when a test lets them, or each second."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tasuki_mp import Context, Job, Tasuki
from tests.support.door import hold

app = Tasuki(version="2")


@app.handler(queue="pages", priority=1)
def page(number: int, tick: str = "") -> int:
    """What a tick makes."""
    return number


@app.schedule("every 1s", name="pulse", queue="ticks")
def pulse(tick: datetime) -> Iterator[Job]:
    """Two pages each second."""
    for number in range(2):
        yield page.job(number, tick.isoformat())


@app.schedule("0 3 * * *", tz="Europe/Paris", jitter="10m", misfire="skip")
def nightly(ctx: Context) -> Iterator[Job]:
    """One page, at night."""
    yield page.job(ctx.attempt)


@app.schedule(timedelta(hours=1), overlap="skip", start=datetime(2026, 1, 1, tzinfo=UTC))
@app.handler(queue="hourly", max_attempts=1)
def hourly(door: str = "") -> None:
    """Plain work."""
    if door:
        hold.function(door, Context(job_id=0, lease_no=0, handler="", queue="", attempt=1, max_attempts=1))


app.schedule_job(page.job(7).priority(3), "@monthly", name="report")
