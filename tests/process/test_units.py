"""Jobs of several units beside jobs of one, in a real supervisor with two slots."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.support import invariants, jobs
from tests.support.door import Door, Visitor
from tests.support.hooked import Supervised

Conn = psycopg.Connection[Any]
APP = "tests.support.puppet:app"


def add(conn: Conn, door: Door, *, cpus: int = 1) -> int:
    limits = {"limits": Jsonb({"cpus": cpus})} if cpus > 1 else {}
    return jobs.add(conn, handler="puppet", payload={"door": door.path}, max_attempts=5, **limits)


def end(conn: Conn, visitor: Visitor) -> None:
    visitor.tell("return done")
    assert jobs.wait_final(conn, visitor.job)["status"] == "completed"


def test_a_job_of_two_units_runs_alone_on_two_slots_and_is_not_starved(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--poll", "20ms", app=APP, procs=2) as supervised:
        supervised.started()
        add(conn, door)
        first = door.visitor()
        big = add(conn, door, cpus=2)
        small = [add(conn, door) for _ in range(4)]

        # Two use the gap, as many as there are slots. They are canceled, so that nobody learns how quick they are.
        for number in range(2):
            other = door.visitor()
            assert other.job == small[number]
            jobs.cancel(conn, other.job)
            jobs.wait_final(conn, other.job)
        end(conn, first)
        visitor = door.visitor()
        assert visitor.job == big, "the other unit was kept for it"
        assert door.is_quiet(), "both units are the big one's"
        end(conn, visitor)
        for other in [door.visitor(), door.visitor()]:
            end(conn, other)
        assert supervised.stop() == 0
    invariants.check(conn)


def test_a_big_job_whose_child_dies_frees_all_its_units(dsn: str, conn: Conn) -> None:
    with Door() as door, Supervised(dsn, "--poll", "20ms", app=APP, procs=2) as supervised:
        supervised.started()
        big = add(conn, door, cpus=2)
        door.visitor().ask("kill 11")
        again = door.visitor()
        assert (again.job, again.attempt) == (big, 2), "in a fresh child, with both units"
        add(conn, door)
        end(conn, again)
        end(conn, door.visitor())
        assert supervised.stop() == 0
    invariants.check(conn)
