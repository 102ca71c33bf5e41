"""The pytest plugin, as somebody else's tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

APPLICATION = """
from tasuki_mp import Retry, Tasuki

app = Tasuki()


@app.handler(queue="mail")
def welcome(name: str) -> str:
    return f"hello {name}"


app.schedule_job(welcome.job("day"), "@daily", name="daily")


def sign_up(name: str) -> None:
    app.enqueue(welcome.job(name))
"""
TESTS = """
import datetime as dt

import pytest
from shop import app, sign_up, welcome


@pytest.fixture
def shop(tasuki):
    return tasuki.use(app)


@pytest.mark.parametrize("name", ["Ann", "Bob"])
def test_each_test_has_a_database_of_its_own(tasuki, shop, name):
    sign_up(name)
    tasuki.assert_enqueued(welcome, payload={"name": name}, count=1)
    assert len(tasuki.enqueued()) == 1
    [run] = tasuki.run_due(app)
    assert run.value == f"hello {name}"
    assert tasuki.enqueued() == []
    assert tasuki.conn.execute("select tasuki.enqueue('welcome', '{\\"name\\": \\"sql\\"}')").fetchone()


def test_time_is_the_test_s(tasuki, shop):
    app.enqueue(welcome.job("Ann").after(hours=1))
    assert tasuki.run_due(app) == []
    tasuki.travel(minutes=59)
    assert tasuki.run_due(app) == []
    tasuki.travel(minutes=2)
    assert len(tasuki.run_due(app)) == 1
    app.enqueue(welcome.job("Bob").after(days=100))
    now = tasuki.travel_to(dt.datetime(2199, 1, 1, tzinfo=dt.UTC))
    assert now.year == 2199
    assert len(tasuki.run_due(app)) == 1
    with pytest.raises(ValueError, match="forward"):
        tasuki.travel_to(dt.datetime(2030, 1, 1, tzinfo=dt.UTC))


def test_what_is_put_off_counts_from_the_test_s_clock(tasuki, shop):
    tasuki.travel(days=8)
    jobs = [welcome.job("Ann").after(hours=1), welcome.job("now")]
    app.enqueue(jobs[0])
    app.enqueue_many(jobs)
    app.enqueue_batch(jobs)
    assert [run.payload["name"] for run in tasuki.run_due(app)] == ["now", "now"]
    tasuki.travel(minutes=61)
    assert [run.payload["name"] for run in tasuki.run_due(app)] == ["Ann"] * 3


def test_schedules_tick_when_they_are_told(tasuki, shop):
    assert tasuki.fire_ticks(app) == []
    tasuki.travel(days=1)
    [tick] = tasuki.fire_ticks(app)
    assert (tick.schedule, tick.verdict) == ("daily", "fired")
    assert [run.value for run in tasuki.run_due(app)] == ["hello day"]


def test_without_use_the_environment_names_the_database(tasuki):
    from tasuki_mp import Client

    with Client() as client:
        client.enqueue(welcome.job("Ann"))
    tasuki.assert_enqueued(welcome.job("Ann"))
    assert len(tasuki.drain(app)) == 1


def test_an_application_has_its_client_back():
    assert app._client is None
"""


def test_a_project_s_tests_run_with_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "test_shop.py").write_text(TESTS)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TASUKI_DSN"))}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**variables, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "7 passed" in ended.stdout


def test_the_plugin_loads_nothing_until_it_is_used() -> None:
    script = """
import sys
import tasuki_mp.testing.plugin
print([name for name in ("psycopg", "click", "rich", "uvloop") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
