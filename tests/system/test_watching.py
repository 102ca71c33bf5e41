"""What a running supervisor says of itself over HTTP: alive, ready or why not, and what it has counted."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support import jobs, outages
from tests.support.door import Door
from tests.support.hooked import Supervised
from tests.support.waiting import wait_until
from tests.unit.test_metrics import Samples, parsed, value

Conn = psycopg.Connection[Any]

OPTIONS = ("--http", "127.0.0.1:0", "--lease", "3s")
DOCUMENTED = re.compile(r"`(tasuki_\w+)`")


class Watch:
    """Asks that supervisor."""

    def __init__(self, supervised: Supervised) -> None:
        self._url = urlsplit(supervised.event("http")["url"])

    def ask(self, path: str) -> tuple[int, str]:
        assert self._url.hostname is not None
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    @property
    def is_alive(self) -> bool:
        status, body = self.ask("/healthz")
        assert json.loads(body)["alive"] == (status == 200)
        return status == 200

    def not_ready(self) -> list[str]:
        """Why it is not ready; empty if it is."""
        status, body = self.ask("/readyz")
        answer = json.loads(body)
        assert answer["ready"] == (status == 200) == (not answer["reasons"])
        return list(answer["reasons"])

    def until_ready(self) -> None:
        wait_until(lambda: not self.not_ready(), "that it is ready")

    def until_not_ready(self, reason: str) -> None:
        wait_until(lambda: any(each.startswith(reason) for each in self.not_ready()), f"not ready: {reason}")

    def metrics(self) -> Samples:
        status, body = self.ask("/metrics")
        assert status == 200
        return parsed(body)


def test_what_jobs_came_to_and_what_children_died_of_is_counted(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, *OPTIONS, procs=2) as supervised:
        watch = Watch(supervised)
        held = {"payload": {"door": door.path}, "max_attempts": 1}
        for job_id in jobs.fill(conn, 30, queue="default", handler="note"):
            jobs.wait_final(conn, job_id)
        ends = {"raise": "failed", "exit 3": "failed", "kill": "failed", "return": "completed"}
        for order, status in ends.items():
            job_id = jobs.add(conn, handler="hold", **held)
            visitor = door.visitor()
            if order == "kill":
                visitor.signal(signal.SIGKILL)
            else:
                visitor.tell(order)
            assert jobs.wait_final(conn, job_id)["status"] == status
        jobs.add(conn, handler="nobody's")
        jobs.add(conn, handler="hold", **held)
        last = door.visitor()

        found: Samples = wait_until(
            lambda: seen if value(seen := watch.metrics(), "tasuki_children") == 2 and _is_settled(seen) else {},
            "that everything is written down and both children are there",
        )

        outcomes = {tuple(labels.values()): count for labels, count in _of(found, "tasuki_jobs_total")}
        assert outcomes == {("note", "completed"): 30, ("hold", "failed"): 3, ("hold", "completed"): 1}
        deaths = {labels["cause"]: count for labels, count in _of(found, "tasuki_child_deaths_total")}
        assert deaths == {"exit": 1, "SIGKILL": 1}
        assert value(found, "tasuki_job_runtime_seconds_count", handler="note") == 30
        assert value(found, "tasuki_job_wait_seconds_count", handler="hold") == 4
        assert (value(found, "tasuki_slots"), value(found, "tasuki_jobs_running")) == (2, 1)
        text = Path(__file__).parents[2].joinpath("docs", "operations.md").read_text(encoding="utf-8")
        documented = set(DOCUMENTED.findall(text))
        assert documented
        assert documented <= {name for name, _ in found}
        last.tell("return")
        assert supervised.stop() == 0


def _of(found: Samples, name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(sorted(labels)), count) for (each, labels), count in found.items() if each == name]


def _is_settled(found: Samples) -> bool:
    """Whether 34 jobs are on record and one runs, as the supervisor counts and as the database does.

    A job that was given back since no child had come up for it was leased once more, and that is on record too.
    """
    figures = {(name, *(label for _, label in sorted(labels))): figure for (name, labels), figure in found.items()}
    applied = figures.get(("tasuki_finish_verdicts_total", "applied"), 0)
    return (
        applied >= 34
        and figures["tasuki_leased_jobs_total",] == applied + 1
        and figures.get(("tasuki_queue_jobs", "default", "running")) == 1
        and figures.get(("tasuki_unknown_handler_jobs",)) == 1
    )


def test_it_is_not_ready_while_the_database_is_away_and_then_again(dsn: str, conn: Conn) -> None:
    with Supervised(dsn, *OPTIONS) as supervised:
        watch = Watch(supervised)
        watch.until_ready()
        with outages.outage(dsn, conn):
            watch.until_not_ready("no heartbeat has reached the database for")
            assert watch.is_alive
            assert value(watch.metrics(), "tasuki_heartbeat_age_seconds") > 1.5
        watch.until_ready()
        assert watch.is_alive
        wait_until(lambda: value(watch.metrics(), "tasuki_loop_lag_seconds") < 1, "that the loop comes round")
        assert supervised.stop() == 0


def test_it_is_not_ready_while_it_stops(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, *OPTIONS) as supervised:
        watch = Watch(supervised)
        jobs.add(conn, handler="hold", payload={"door": door.path})
        visitor = door.visitor()
        watch.until_ready()
        supervised.signal(signal.SIGTERM)
        watch.until_not_ready("stopping")
        assert watch.is_alive
        visitor.tell("return at last")
        assert supervised.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            watch.ask("/healthz")


APP = """
import os
from pathlib import Path
from tasuki_mp import Tasuki

app = Tasuki()

@app.handler
def pid() -> int:
    return os.getpid()

if Path(os.environ["TEST_FOLDER"], "broken").exists():
    os._exit(3)
"""


def test_it_is_not_ready_while_no_child_comes_up(dsn: str, conn: Conn, tmp_path: Path) -> None:
    tmp_path.joinpath("fragile.py").write_text(APP, encoding="utf-8")
    # With variables of its own, no child is a spare for any slot.
    options = (*OPTIONS, "--no-preload", "--app-dir", str(tmp_path), "--slot-env", "SLOT=a")
    with Supervised(dsn, *options, app="fragile:app", env={"TEST_FOLDER": str(tmp_path)}) as supervised:
        watch = Watch(supervised)
        watch.until_ready()
        broken = tmp_path / "broken"
        broken.touch()
        child = jobs.wait_final(conn, jobs.add(conn, handler="pid"))["result"]
        os.kill(child, signal.SIGKILL)
        supervised.event("child did not start", failures=2)
        watch.until_not_ready("no slot has a child")
        assert watch.is_alive
        assert value(watch.metrics(), "tasuki_children") == 0
        broken.unlink()
        watch.until_ready()
        assert supervised.stop() == 0
