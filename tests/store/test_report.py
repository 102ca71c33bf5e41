"""The report: what each handler's attempts came to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp.store import look
from tasuki_mp.store.connect import connect
from tests.support import jobs
from tests.support.holder import Holder

Conn = psycopg.Connection[tuple[Any, ...]]


def test_attempts_are_summed_up_by_handler(dsn: str, conn: Conn, one: Holder) -> None:
    jobs.fill(conn, 3)
    for seconds, kind in ((1.0, "completed"), (3.0, "failed"), (2.0, "retry")):
        usage = f'{{"seconds": {seconds}, "cpu_seconds": {seconds / 2}, "waited_seconds": 4, "memory_peak": {int(seconds)}}}'
        one.end(one.lease_one(), kind, usage=usage, delay=60.0)  # type: ignore[arg-type]
    other = jobs.add(conn, handler="other")
    conn.execute("SELECT tasuki.cancel(%s)", [other])
    now = datetime.now(UTC)
    with connect(dsn, name="report") as reading:
        work, canceled = look.report(reading, since=now - timedelta(hours=1))
        assert look.report(reading, since=now + timedelta(hours=1)) == []
    assert (work.handler, work.jobs, work.completed, work.failed, work.retried) == ("work", 2, 1, 1, 1)
    assert (work.cpu_seconds, work.ran_p50, work.waited_p99, work.memory_peak) == (3.0, 2.0, 4.0, 3)
    assert work.ran_p95 == pytest.approx(2.9)
    assert (canceled.handler, canceled.jobs, canceled.canceled, canceled.ran_p50) == ("other", 1, 1, None)
