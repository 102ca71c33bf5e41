"""One chaos run: supervisors, producers and faults on a database of its own; then the evidence, and what it proves."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from scripts.chaos import app as jobs
from scripts.chaos import evidence, invariants
from scripts.chaos.faults import Director
from scripts.chaos.fleet import Fleet, Member
from scripts.chaos.invariants import Verdict
from scripts.chaos.producers import Producers
from scripts.harness import host
from scripts.harness.server import Server, scratch_server
from scripts.harness.waiting import wait

SETTLE_FOR: Final = 120.0
"""Seconds after the last fault within which every job must have ended."""
STOP_FOR: Final = 60.0
PROBES: Final = 20
PROBE_FOR: Final = 5.0
"""Seconds within which a job must be done when there is nothing else to do: many polls, even on a busy machine."""
DESCRIPTORS_SLACK: Final = 24


@dataclass(frozen=True)
class Plan:
    """What a run was asked for. `pause` is the mean time between two faults, in seconds."""

    minutes: float = 3.0
    jobs: int = 20_000
    supervisors: int = 4
    procs: int = 2
    lease: float = 5.0
    pause: float = 1.2
    seed: int = 1
    level: str = "info"


@dataclass
class Report:
    """What came out."""

    verdicts: list[Verdict]
    host_failures: list[str]
    """Broken promises about the machine: processes, descriptors, exit codes."""
    totals: dict[str, Any] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        return not self.host_failures and not any(verdict.rows for verdict in self.verdicts)


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Report:
    """Do it. `folder` keeps the logs and the journal."""
    tag = host.new_tag()
    failures: list[str] = []
    with scratch_server() as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute((Path(__file__).parent / "schema.sql").read_bytes())
        report = _run(plan, folder, server, tag, failures, say)
    if left := host.tagged(tag):
        failures.extend(f"process left behind: {each.pid} {each.command}" for each in left)
    return report


def _run(plan: Plan, folder: Path, server: Server, tag: str, failures: list[str], say: Callable[[str], None]) -> Report:
    seconds = plan.minutes * 60
    options = (
        *("--procs", str(plan.procs), "--lease", f"{plan.lease:g}s", "--grace", "3s", "--poll", "500ms"),
        *("--queue", "chaos-a=3", "--queue", "chaos-b"),
    )
    with _fleet(plan, folder, server, tag, options) as fleet:
        producers = Producers(server.dsn, count=plan.jobs, seconds=seconds * 0.8, seed=plan.seed)
        director = Director(fleet, server, lease=plan.lease, pause=plan.pause, seed=plan.seed)
        say(f"{plan.supervisors} supervisors × {plan.procs} slots, {plan.jobs} jobs, {seconds:.0f} s of faults")
        begin = host.now()
        producers.start()
        try:
            wait(lambda: host.now() - begin >= seconds and producers.is_done, seconds * 3, director.step)
        finally:
            producers.stop()
            director.make_good()
        say(f"no more faults after {host.now() - begin:.0f} s: {sum(director.counts.values())} of them")
        failures.extend(f"producer failed: {error!r}" for error in producers.errors)
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            calm = host.now()
            wait(lambda: _live(conn) == 0, SETTLE_FOR, fleet.look)
            say(f"all jobs ended after {host.now() - calm:.1f} s more" if not _live(conn) else "jobs are left")
            failures.extend(_probe(conn))
            failures.extend(_resources(fleet, plan))
            fleet.stop()
            if not wait(lambda: fleet.is_stopped, STOP_FOR):
                failures.append("a supervisor did not stop when told to")
            failures.extend(_exits(fleet))
            evidence.load(conn, fleet, director.records)
            report = Report(
                invariants.check(conn, lease=plan.lease), failures, evidence.totals(conn, fleet), director.counts
            )
    if left := host.tagged(tag):
        failures.extend(f"process left behind: {each.pid} {each.command}" for each in left)
    return report


@contextmanager
def _fleet(plan: Plan, folder: Path, server: Server, tag: str, options: tuple[str, ...]) -> Iterator[Fleet]:
    fleet = Fleet(plan.supervisors, server=server, folder=folder, tag=tag, options=options, level=plan.level)
    with closing(fleet):
        yield fleet


def _live(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM tasuki.job").fetchone()
    assert row is not None
    return int(row[0])


def _probe(conn: psycopg.Connection[Any]) -> Iterator[str]:
    """Once all is quiet, a job starts as soon as it is enqueued: nobody has gone deaf or lost a slot."""
    for number in range(PROBES):
        with conn.transaction():
            job_id = jobs.app.enqueue(jobs.noop.job(), conn).id
            conn.execute("INSERT INTO chaos.ledger (id, kind) VALUES (%s, 'noop')", (job_id,))
        if not wait(lambda: _live(conn) == 0, PROBE_FOR):
            yield f"probe {number}: job {job_id} was not run within {PROBE_FOR:g} s, though nothing else was to be done"


def _resources(fleet: Fleet, plan: Plan) -> Iterator[str]:
    """Supervisors that were through all of it hold no more descriptors and threads than a fresh one, and no zombies."""
    fresh = fleet.members[0]
    fresh.stop(signal.SIGTERM, pause=0)
    # A slot that was just emptied by a fault is being filled again: look until it is.
    if not wait(lambda: all(_is_complete(each, plan) for each in fleet.members), 30.0, fleet.look):
        yield "not every supervisor has all its children"
        return
    for what, count, slack in (("descriptors", host.descriptors, DESCRIPTORS_SLACK), ("threads", host.threads, 4)):
        most = max(count(fresh.pid or 0) for _ in range(3)) + slack
        for member in fleet.members[1:]:
            if not wait(lambda c=count, m=member, most=most: c(m.pid or 0) <= most, 10.0):  # type: ignore[misc]  # bound now
                yield f"{member.generation} has {count(member.pid or 0)} {what}, where a fresh one has {most - slack}"
    for member in fleet.members:
        if not wait(lambda m=member: all(p.state != "Z" for p in host.children_of(m.pid or 0)), 10.0):  # type: ignore[misc]
            yield f"{member.generation} has zombies"


def _is_complete(member: Member, plan: Plan) -> bool:
    return member.is_steady and len(host.slots_of(member.pid or 0)) == plan.procs


def _exits(fleet: Fleet) -> Iterator[str]:
    for member in fleet.members:
        for code in member.exit_codes:
            # 6: told to stop while the database was away, and not everything could be written.
            if code not in {0, 4, 6}:
                yield f"a supervisor at {member.name} ended with exit code {code} when it was told to stop"
        for generation, code in member.own_ends:
            if code != 4:
                yield f"supervisor {generation} ended by itself with exit code {code}"
