"""The SQL of schedules: a tick fires once whoever races for it, and what was decided stays decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tasuki_mp import Client, ScheduleError, Tasuki
from tasuki_mp.job import Job, JobRow
from tasuki_mp.schedule import ScheduleInfo, info
from tasuki_mp.store import schedules
from tasuki_mp.store.schedules import Fired
from tasuki_mp.store.steps import drive
from tests.support.holder import Holder

Conn = psycopg.Connection[tuple[Any, ...]]
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
JOB = JobRow(handler="work", payload='{"a": 1}', queue="q", priority=1, max_attempts=3, key="k")


def declared(name: str = "s", when: str = "every 1s", **options: Any) -> ScheduleInfo:
    return info(name, when, JOB, **options)


@pytest.fixture
def declare(conn: Conn) -> Callable[..., None]:
    """Declare a schedule; with `behind`, its ticks are decided up to so many seconds before `NOW`."""

    def register(info: ScheduleInfo, *, behind: float | None = None, version: str = "") -> None:
        conn.execute(schedules.REGISTER, schedules.register_parameters([info], source="app", version=version))
        if behind is not None:
            decide_until(conn, NOW - timedelta(seconds=behind))

    return register


def decide_until(conn: Conn, when: datetime) -> None:
    conn.execute("UPDATE tasuki.schedule SET decided_until = %s", (when,))


def fire(holder: Holder, *names: str, now: datetime | None = NOW) -> Fired:
    return holder.call(schedules.fire, owner=holder.owner, names=names or ("s",), now=now)


def ticks(conn: Conn) -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT schedule, verdict, job_id, passed_over FROM tasuki.schedule_tick ORDER BY tick"
    ).fetchall()


def test_a_new_schedule_has_no_past(conn: Conn, one: Holder, declare: Callable[..., None]) -> None:
    declare(declared(when="@yearly"))
    assert fire(one, now=None).ticks == []
    assert ticks(conn) == []


def test_a_tick_inserts_its_job_as_it_was_declared(conn: Conn, one: Holder, declare: Callable[..., None]) -> None:
    declare(declared(tick_argument="tick"), behind=1)
    (tick,) = fire(one).ticks
    assert (tick.tick, tick.verdict) == (NOW, "fired")
    row = conn.execute(
        "SELECT queue, handler, payload, priority, max_attempts, key, schedule, status FROM tasuki.job WHERE id = %s",
        (tick.job_id,),
    ).fetchone()
    assert row == ("q", "work", {"a": 1, "tick": "2026-05-01T12:00:00.000000Z"}, 1, 3, "k", "s", "pending")
    assert fire(one).ticks == []


def test_jitter_puts_the_job_off_and_not_the_tick(conn: Conn, one: Holder, declare: Callable[..., None]) -> None:
    now = datetime.now(UTC)
    declare(declared(jitter="300d"))
    decide_until(conn, now - timedelta(seconds=50))
    assert len(fire(one, now=now).ticks) == 50
    delays = [days for (days,) in conn.execute("SELECT extract(day from scheduled_at - now())::int FROM tasuki.job")]
    assert min(delays) >= 0 and max(delays) <= 300
    assert len(set(delays)) > 10


@pytest.mark.parametrize(("misfire", "first"), [("last", "fired"), ("skip", "missed")])
def test_after_an_outage(conn: Conn, one: Holder, declare: Callable[..., None], misfire: Any, first: str) -> None:
    declare(declared(misfire=misfire, misfire_after=60), behind=300)
    fire(one)
    seen = [(verdict, passed_over) for _, verdict, _, passed_over in ticks(conn)]
    assert seen == [(first, 238), *[("fired", 0)] * 61]


def test_overlap_leaves_a_tick_out_while_a_job_of_an_earlier_one_lives(
    conn: Conn, one: Holder, declare: Callable[..., None]
) -> None:
    declare(declared(overlap="skip"), behind=3)
    fire(one)
    assert [verdict for _, verdict, _, _ in ticks(conn)] == ["fired", "overlap", "overlap"]
    conn.execute("UPDATE tasuki.job SET handler = 'what it yielded'")
    fire(one, now=NOW + timedelta(seconds=1))
    assert ticks(conn)[-1][1] == "overlap"
    conn.execute("DELETE FROM tasuki.job")
    fire(one, now=NOW + timedelta(seconds=2))
    assert ticks(conn)[-1][1] == "fired"


def test_eight_that_race_fire_each_tick_once(conn: Conn, dsn: str, declare: Callable[..., None]) -> None:
    names = [f"s{number}" for number in range(5)]
    for name in names:
        declare(declared(name))
    decide_until(conn, NOW - timedelta(seconds=20))

    def fight(_: int) -> None:
        with Holder(dsn) as holder:
            for _ in range(10):
                fire(holder, *names)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fight, range(8)))
    rows = conn.execute(
        """SELECT count(*), count(DISTINCT (schedule, tick)), count(DISTINCT job_id),
                  (SELECT count(*) FROM tasuki.job), count(*) FILTER (WHERE verdict <> 'fired')
           FROM tasuki.schedule_tick"""
    ).fetchone()
    assert rows == (100, 100, 100, 100, 0)


def test_a_schedule_that_somebody_has_taken_is_left_to_him(
    conn: Conn, one: Holder, two: Holder, declare: Callable[..., None]
) -> None:
    declare(declared("a"))
    declare(declared("b"), behind=1)
    with conn.transaction():
        conn.execute("SELECT FROM tasuki.schedule WHERE name = 'a' FOR UPDATE")
        fired = fire(one, "a", "b")
    assert [mine.name for mine in fired.decided] == ["b"]
    assert [tick.schedule for tick in fired.ticks] == ["b"]
    assert [tick.schedule for tick in fire(two, "a", "b").ticks] == ["a"]


def test_ticks_that_were_trimmed_do_not_fire_again(conn: Conn, one: Holder, declare: Callable[..., None]) -> None:
    declare(declared(), behind=30)
    fire(one)
    assert one.call(schedules.trim, keep=10) == 20
    assert len(ticks(conn)) == 10
    assert one.call(schedules.trim, keep=10) == 0
    assert fire(one).ticks == []
    assert conn.execute("SELECT decided_until FROM tasuki.schedule").fetchone() == (NOW,)


def test_the_newest_deploy_wins_and_new_times_count_from_now(
    conn: Conn, one: Holder, declare: Callable[..., None]
) -> None:
    declare(declared(), behind=30, version="1")
    declare(declared(jitter=5), version="2")
    assert len(fire(one).ticks) == 30
    declare(declared(when="every 2s"), version="3")
    until = conn.execute(
        "SELECT decided_until > now() - interval '5 min', version, timetable FROM tasuki.schedule"
    ).fetchone()
    assert until == (True, "3", "every 2s")


def test_a_pause_survives_a_deploy_and_its_ticks_never_fire(
    conn: Conn, one: Holder, declare: Callable[..., None]
) -> None:
    declare(declared(), behind=30)
    assert drive(conn, schedules.pause("s", is_paused=True))
    declare(declared())
    assert fire(one).decided == []
    assert drive(conn, schedules.pause("s", is_paused=False))
    assert fire(one).ticks == []
    assert not drive(conn, schedules.pause("t", is_paused=True))


def test_what_a_client_stores_is_minded_by_who_knows_the_handler(conn: Conn, dsn: str, one: Holder) -> None:
    with Client(dsn) as client:
        client.schedule_job(Job(JOB), "every 1s", name="stored")
        (mine,) = one.call(schedules.look_own, names=[], handlers=["work"])[1]
        assert mine.name == "stored"
        assert one.call(schedules.look_own, names=["stored"], handlers=["other"])[1] == []
        client.schedule_job(Job(JOB), "@daily", name="stored", tz="Asia/Tokyo")
        (row,) = drive(conn, schedules.look("stored"))
        assert (row.timetable, row.tz, row.source, row.is_known) == ("@daily", "Asia/Tokyo", "client", False)
        with pytest.raises(ScheduleError, match="time zone"):
            client.schedule_job(Job(JOB), "@daily", name="stored", tz="Nowhere")
        with pytest.raises(ScheduleError, match="can't be unique"):
            client.schedule_job(Job(JOB).unique(), "@daily", name="stored")
        assert client.remove_schedule("stored")
        assert not client.remove_schedule("stored")


@pytest.fixture
def application(dsn: str) -> Iterator[Tasuki]:
    it = Tasuki(dsn=dsn)
    yield it
    it.client.close()


def test_what_an_application_schedules_at_run_time_is_stored(conn: Conn, application: Tasuki) -> None:
    application.schedule_job(Job(JOB), "@daily", name="stored")
    with conn.transaction(force_rollback=True):
        application.schedule_job(Job(JOB), "@hourly", name="taken-back", conn=conn)
    (row,) = drive(conn, schedules.look())
    assert (row.name, row.timetable, row.source) == ("stored", "@daily", "client")
    assert application.registry.schedules == {}


def test_a_client_does_not_take_the_name_of_an_application(conn: Conn, dsn: str, declare: Callable[..., None]) -> None:
    declare(declared())
    with Client(dsn) as client, pytest.raises(ScheduleError, match="an application declares"):
        client.schedule_job(Job(JOB), "@daily", name="s")
    assert drive(conn, schedules.look("s"))[0].source == "app"


def test_run_by_hand_is_in_the_history(conn: Conn, one: Holder, declare: Callable[..., None]) -> None:
    declare(declared(when="@yearly", overlap="skip", tick_argument="tick"))
    first, second = drive(conn, schedules.run("s")), drive(conn, schedules.run("s"))
    assert drive(conn, schedules.run("t")) is None
    history = drive(conn, schedules.history("s", limit=10))
    assert [(tick.verdict, tick.job_id, tick.state) for tick in history] == [
        ("manual", second, "pending"),
        ("manual", first, "pending"),
    ]
    (row,) = drive(conn, schedules.look("s"))
    assert (row.last_job, row.last_verdict) == (second, "manual")
    assert row.last_tick is not None and datetime.now(UTC) - row.last_tick < timedelta(minutes=5)


def test_overlap_is_asked_of_an_index_and_read_one_entry_of_it(
    conn: Conn, one: Holder, declare: Callable[..., None]
) -> None:
    conn.execute(
        """INSERT INTO tasuki.job (handler, schedule)
           SELECT 'work', CASE n % 2 WHEN 0 THEN 's' ELSE 'other' END FROM generate_series(1, 20000) AS n"""
    )
    conn.execute("ANALYZE tasuki.job")
    declare(declared(overlap="skip"))
    declare(declared("t", overlap="skip"), behind=1)
    counts = """SELECT sum(pg_stat_get_xact_tuples_returned(c.oid))::bigint FROM pg_class AS c
                WHERE c.oid IN ('tasuki.job'::regclass, 'tasuki.job_schedule'::regclass)"""

    def read() -> int:
        return one.run(one.run(one.conn.execute, counts).fetchone)[0]

    one.run(one.conn.execute, "BEGIN")
    before = read()
    fired = {tick.schedule: tick.verdict for tick in fire(one, "s", "t").ticks}
    seen = read() - before
    one.run(one.conn.execute, "COMMIT")
    assert fired == {"s": "overlap", "t": "fired"}
    assert seen <= 4
