"""Schedules at work: supervisors that fire, die and are replaced; and the command that looks at them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tasuki_mp import Client
from tests.support import planned
from tests.support.hooked import Supervised, supervisors
from tests.support.waiting import wait_for_row, wait_until
from tests.system.conftest import Tasuki

APP = "tests.support.planned:app"
Conn = psycopg.Connection[tuple[Any, ...]]

TICKS = "SELECT tick FROM tasuki.schedule_tick WHERE schedule = 'pulse' AND verdict = 'fired' ORDER BY tick"
PAGES = """
    SELECT (payload ->> 'tick')::timestamptz, count(*) FROM (
      SELECT payload FROM tasuki.job WHERE handler = 'page' AND payload ? 'tick'
      UNION ALL SELECT payload FROM tasuki.job_archive WHERE handler = 'page' AND payload ? 'tick'
    ) AS p GROUP BY 1 ORDER BY 1
"""
"""How many pages each tick of `pulse` has made."""
NEW_TICKS = "SELECT 1 FROM tasuki.schedule_tick WHERE decided_at > %s HAVING count(*) >= 2"


def pause(conn: Conn) -> None:
    conn.execute("UPDATE tasuki.schedule SET paused_at = now()")


def assert_each_tick_made_two_pages(conn: Conn) -> None:
    """What was decided so far is done, once, and nothing else is."""
    fired = [tick for (tick,) in conn.execute(TICKS)]
    assert len(fired) >= 2
    wait_until(
        lambda: [tuple(row) for row in conn.execute(PAGES)] == [(tick, 2) for tick in fired],
        f"two pages for each of {len(fired)} ticks",
    )
    assert conn.execute("SELECT count(*) FROM tasuki.job_archive WHERE handler = 'pulse'").fetchone() == (len(fired),)


def test_two_supervisors_fire_each_tick_once(conn: Conn, dsn: str) -> None:
    with supervisors(dsn, 2, app=APP) as two:
        wait_for_row(conn, "SELECT 1 FROM tasuki.schedule_tick HAVING count(*) >= 4")
        pause(conn)
        assert_each_tick_made_two_pages(conn)
        for each in two:
            assert each.stop() == 0
    rows = conn.execute(
        "SELECT tick - lag(tick) OVER (ORDER BY tick) FROM tasuki.schedule_tick WHERE schedule = 'pulse' OFFSET 1"
    ).fetchall()
    assert {gap.total_seconds() for (gap,) in rows} == {1.0}, "no tick was left out"
    rows = conn.execute("SELECT DISTINCT queue, priority, schedule FROM tasuki.job WHERE handler = 'page'").fetchall()
    assert rows in ([], [("pages", 1, "pulse")])


@pytest.mark.parametrize("point", ["before_tick_commit", "after_tick_commit", "before_finish", "after_finish_sent"])
def test_a_tick_is_done_once_whenever_its_supervisor_dies(conn: Conn, dsn: str, point: str) -> None:
    with Supervised(dsn, "--lease", "2s", app=APP, gates=[point]) as first:
        first.gate()
        first.kill()
    at_death = conn.execute("SELECT clock_timestamp()").fetchone()
    assert at_death is not None
    if point == "before_tick_commit":
        assert conn.execute(TICKS).fetchall() == [] == conn.execute("SELECT 1 FROM tasuki.job").fetchall()
    with Supervised(dsn, "--lease", "2s", app=APP):
        wait_for_row(conn, NEW_TICKS, at_death)
        pause(conn)
        assert_each_tick_made_two_pages(conn)


def test_an_outage_of_the_whole_fleet_is_made_up_for(conn: Conn, dsn: str) -> None:
    with Supervised(dsn, app=APP) as first:
        wait_for_row(conn, TICKS)
        first.kill()
    conn.execute(
        "UPDATE tasuki.schedule SET decided_until = date_trunc('hour', now()) - interval '1 s' WHERE name = 'hourly'"
    )
    conn.execute("DELETE FROM tasuki.schedule_tick WHERE schedule = 'hourly'")
    with Supervised(dsn, app=APP):
        (verdict,) = wait_for_row(conn, "SELECT verdict FROM tasuki.schedule_tick WHERE schedule = 'hourly'")
    assert verdict == "fired"


def test_a_program_that_drains_fires_nothing(conn: Conn, dsn: str) -> None:
    with Supervised(dsn, app=APP) as first:
        wait_for_row(conn, TICKS)
        first.stop()
    conn.execute("UPDATE tasuki.schedule SET decided_until = now() - interval '30 s'")
    conn.execute("DELETE FROM tasuki.schedule_tick")
    with Supervised(dsn, "--drain", app=APP) as drained:
        assert drained.wait() == 0
    assert conn.execute(TICKS).fetchall() == []


def test_a_schedule_stored_at_run_time_is_fired_at_once(conn: Conn, dsn: str) -> None:
    with Supervised(dsn, app=APP) as supervised:
        supervised.started()
        with Client(dsn) as client:
            client.schedule_job(planned.page.job(5), "* * * * * *", name="stored")
        wait_for_row(conn, "SELECT 1 FROM tasuki.job_archive WHERE handler = 'page' AND payload ->> 'number' = '5'")


def test_the_command_shows_and_steers(conn: Conn, dsn: str, tasuki: Tasuki) -> None:
    at = ("--dsn", dsn)
    assert "there are no schedules" in tasuki("schedule", "list", *at).out
    with Supervised(dsn, app=APP) as supervised:
        wait_for_row(conn, "SELECT 1 FROM tasuki.job_archive WHERE handler = 'pulse'")
        listed = {row["name"]: row for row in tasuki("schedule", "list", "--json", *at).json}
        assert sorted(listed) == ["hourly", "nightly", "pulse", "report"]
        assert all(row["is_known"] for row in listed.values())
        assert listed["nightly"]["tz"] == "Europe/Paris" and listed["nightly"]["version"] == "2"
        assert listed["report"]["payload"] == {"number": 7} and listed["report"]["priority"] == 3
        assert tasuki("schedule", "pause", "pulse", *at).code == 0
        supervised.stop()

    shown = tasuki("schedule", "list", *at)
    assert shown.code == 0
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line}
    assert "paused" in lines["pulse"] and "no program" in lines["nightly"]
    assert "3 of them" in shown.out or "4 of them" in shown.out

    ahead = tasuki("schedule", "next", "nightly", "--count", "3", *at)
    assert [line.split()[2] for line in ahead.out.splitlines()] == ["03:00:00"] * 3
    assert "no living program" in ahead.err
    assert len(tasuki("schedule", "next", "nightly", "--json", *at).json) == 10

    ran = tasuki("schedule", "run", "report", "--json", *at).json["id"]
    assert conn.execute("SELECT handler, schedule FROM tasuki.job WHERE id = %s", (ran,)).fetchone() == (
        "page",
        "report",
    )
    history = tasuki("schedule", "history", "report", "--json", *at).json
    assert [(tick["verdict"], tick["job_id"], tick["state"]) for tick in history] == [("manual", ran, "pending")]
    pulse = tasuki("schedule", "history", "pulse", "--limit", "1", *at)
    assert "fired" in pulse.out and "completed" in pulse.out and '{"enqueued": 2}' in pulse.out

    assert tasuki("schedule", "resume", "pulse", *at).out == "pulse: resumed\n"
    assert tasuki("schedule", "remove", "pulse", *at).code == 0
    for command in ("next", "run", "pause", "resume", "history", "remove"):
        ended = tasuki("schedule", command, "pulse", *at)
        assert (ended.code, ended.out) == (1, "")
        assert "there is no schedule 'pulse'" in ended.err


def test_what_a_living_program_declares_is_not_removed(conn: Conn, dsn: str, tasuki: Tasuki) -> None:
    with Supervised(dsn, app=APP) as supervised:
        supervised.started()
        ended = tasuki("schedule", "remove", "nightly", "--dsn", dsn)
    assert ended.code == 2
    assert "a running program declares it" in ended.err
