"""What the doctor has seen, and what of it is worth saying, with what to do about it: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

from tasuki_mp.store.look import QueueDepth, SupervisorInfo
from tasuki_mp.store.retention import Partition

Severity = Literal["note", "warning", "problem"]
"""Worth knowing; will become a problem, or is one for somebody; jobs don't run, or may be lost, now."""

OLDEST: Final = 15
NEWEST: Final = 18
"""Major versions of PostgreSQL that this was tried with."""
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_MANY_XIDS: Final = 1_000_000
_MANY_DEAD: Final = 50_000


class Finding(msgspec.Struct, frozen=True):
    """Something that somebody should know, and what to do about it. `topic` is for programs."""

    topic: str
    severity: Severity
    what: str
    advice: str


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What examine_server.sql says."""

    version: str
    version_number: int
    now: datetime
    is_standby: bool
    has_fsync: bool
    has_full_page_writes: bool
    has_autovacuum: bool
    synchronous_commit: str
    notification_usage: float
    connections: int
    max_connections: int
    sees_everything: bool
    unlogged: list[str]


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Something that keeps dead rows from being removed."""

    kind: Literal["transaction", "prepared", "slot", "standby"]
    name: str
    detail: str
    seconds: float | None
    xids: int | None
    """How many transactions have begun since."""


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    live: int
    dead: int
    bytes: int
    vacuumed_ago: float | None


def judge_server(server: Server) -> Iterator[Finding]:
    """Its version and its settings."""
    major = server.version_number // 10_000
    if major < OLDEST:
        yield Finding(
            "version", "problem", f"PostgreSQL {server.version} is too old", f"upgrade it to {OLDEST} or later"
        )
    elif major > NEWEST:
        yield Finding(
            "version", "note", f"PostgreSQL {server.version} is newer than what was tried", "watch it, and report"
        )
    if server.is_standby:
        yield Finding(
            "standby", "problem", "this server is a standby: nothing can be enqueued or run", "name the primary"
        )
    for is_on, setting in ((server.has_fsync, "fsync"), (server.has_full_page_writes, "full_page_writes")):
        if not is_on:
            yield Finding(
                "durability",
                "problem",
                f"{setting} is off: a crash of the server may destroy the whole database",
                f"ALTER SYSTEM SET {setting} = on, then SELECT pg_reload_conf()",
            )
    if server.synchronous_commit == "off":
        yield Finding(
            "durability",
            "warning",
            "synchronous_commit is off: a crash of the server loses what was committed in its last moments",
            "turn it on for the roles of producers; supervisors may go without, their jobs run again",
        )
    for table in server.unlogged:
        yield Finding(
            "durability",
            "problem",
            f"the table tasuki.{table} is unlogged: a crash of the server empties it",
            f"ALTER TABLE tasuki.{table} SET LOGGED",
        )
    if not server.has_autovacuum:
        yield Finding(
            "vacuum",
            "problem",
            "autovacuum is off: the hot table grows without end",
            "ALTER SYSTEM SET autovacuum = on (and track_counts = on), then SELECT pg_reload_conf()",
        )
    if server.notification_usage > 0.1:
        yield Finding(
            "notifications",
            "problem" if server.notification_usage > 0.5 else "warning",
            f"the queue of notifications is {server.notification_usage:.0%} full; when it is full, enqueueing fails",
            "end the session that listens in an open transaction: see pg_stat_activity",
        )
    if server.connections > 0.85 * server.max_connections:
        yield Finding(
            "connections",
            "warning",
            f"{server.connections} of {server.max_connections} connections are in use",
            "raise max_connections, or put a pooler before the producers; a supervisor needs six",
        )
    if not server.sees_everything:
        yield Finding(
            "rights",
            "note",
            "this role does not see other roles' sessions, so old transactions of theirs may be missing here",
            "GRANT pg_read_all_stats to it, or ask as a role that has it",
        )


def judge_clock(ours: datetime, theirs: datetime, *, within: float) -> Iterator[Finding]:
    """The two clocks, read within so many seconds of each other."""
    gap = abs((theirs - ours).total_seconds()) - within
    if gap > 2:
        where = "behind" if theirs > ours else "ahead of"
        yield Finding(
            "clock",
            "warning" if gap > 30 else "note",
            f"this host's clock is {gap:.0f} seconds {where} the database's, which decides when jobs are due",
            "let both keep time by NTP; times given as `--at` mean the database's clock",
        )


def judge_horizon(holders: Iterable[Holder]) -> Iterator[Finding]:
    """What keeps dead rows alive, so that the hot table grows."""
    for holder in holders:
        seconds, xids = holder.seconds or 0.0, holder.xids or 0
        age = f"{seconds / _MINUTE:.0f} minutes" if seconds < 2 * _HOUR else f"{seconds / _HOUR:.0f} hours"
        match holder.kind:
            case "transaction" if seconds > 5 * _MINUTE:
                yield Finding(
                    "horizon",
                    "problem" if seconds > _HOUR else "warning",
                    f"a transaction has been open for {age}: {holder.name}, {holder.detail}; dead rows pile up behind it",
                    f"end it where it was begun, or SELECT pg_terminate_backend({holder.name.split()[1]})",
                )
            case "prepared" if seconds > 5 * _MINUTE:
                yield Finding(
                    "horizon",
                    "problem",
                    f"a prepared transaction has been waiting for {age}: {holder.name}, {holder.detail}",
                    f"COMMIT PREPARED or ROLLBACK PREPARED '{holder.name}'",
                )
            case "slot" if holder.detail != "active":
                yield Finding(
                    "horizon",
                    "problem" if xids > _MANY_XIDS else "warning",
                    f"the replication slot {holder.name} is not in use; it keeps log files, and dead rows if it holds any",
                    f"let its consumer come back, or SELECT pg_drop_replication_slot('{holder.name}')",
                )
            case "slot" | "standby" if xids > _MANY_XIDS:
                yield Finding(
                    "horizon",
                    "warning",
                    f"{holder.kind} {holder.name} holds back dead rows since {xids:,} transactions",
                    "look for a long query on the standby, or a consumer that does not keep up",
                )
            case _:
                pass


def judge_tables(tables: Iterable[TableState]) -> Iterator[Finding]:
    """Dead rows in the tables that change all the time."""
    for table in tables:
        if table.dead > _MANY_DEAD and table.dead > table.live:
            ago = "never" if table.vacuumed_ago is None else f"{table.vacuumed_ago / _MINUTE:.0f} minutes ago"
            yield Finding(
                "bloat",
                "problem" if table.dead > 100 * _MANY_DEAD else "warning",
                f"tasuki.{table.name} has {table.dead:,} dead rows beside {table.live:,} live ones; last vacuumed {ago}",
                f"see what holds them back (old transactions, above); else VACUUM tasuki.{table.name}",
            )


def judge_supervisors(
    supervisors: list[SupervisorInfo], depths: list[QueueDepth], unknown: dict[str, int]
) -> Iterator[Finding]:
    """Whether there is somebody for every job."""
    living = [supervisor for supervisor in supervisors if not supervisor.is_stale]
    waiting = sum(depth.due for depth in depths if depth.paused_at is None)
    if not living:
        severity: Severity = "problem" if waiting else "note"
        yield Finding(
            "supervisors", severity, f"no supervisor is alive, and {_are(waiting, 'job')} due", "tasuki-mp run"
        )
        return
    for supervisor in supervisors:
        if supervisor.is_stale:
            yield Finding(
                "supervisors",
                "warning" if supervisor.running else "note",
                f"the supervisor on {supervisor.host} (pid {supervisor.pid}) has been silent for"
                f" {supervisor.seen_ago:.0f} seconds; {supervisor.running} of its jobs wait to be taken back",
                "if its host lives, look at its log; others take its jobs when their lease is over",
            )
    served = {queue for supervisor in living for queue in supervisor.queues}
    for depth in depths:
        if depth.queue not in served and depth.due and depth.paused_at is None:
            yield Finding(
                "queues",
                "warning",
                f"nobody works on queue {depth.queue}, where {_are(depth.due, 'job')} due",
                f"start a supervisor for it (--queue {depth.queue}), or tasuki-mp move --queue {depth.queue} --to …",
            )
        if depth.paused_at is not None and depth.due:
            yield Finding(
                "queues",
                "note",
                f"queue {depth.queue} is paused, and {_are(depth.due, 'job')} due",
                f"tasuki-mp queue resume {depth.queue}",
            )
    for handler, jobs in unknown.items():
        yield Finding(
            "handlers",
            "warning",
            f"no living supervisor knows the handler {handler}, of which {_are(jobs, 'job')} pending",
            f"start the application that has it, or tasuki-mp delete --handler {handler} --state pending",
        )


def judge_names(handlers: int, example: str, apps: list[str]) -> Iterator[Finding]:
    """Handlers of the same name in several applications, each of which is named with a host."""
    yield Finding(
        "names",
        "warning",
        f"{_are(handlers, 'name')} used for a handler by several applications: {', '.join(apps)}; one of them is {example}",
        "their jobs go to whichever leases them first: give a handler another name=, or each application its own database",
    )


def judge_partitions(partitions: Iterable[Partition], now: datetime) -> Iterator[Finding]:
    """Whether there is a place for what finishes today and in the next days."""
    days: dict[str, set[object]] = {"job_archive_completed": set(), "job_archive_failed": set(), "attempt": set()}
    for partition in partitions:
        if partition.is_attached and not partition.is_detaching:
            days[partition.parent].add(partition.day)
        if partition.is_detaching:
            yield Finding(
                "partitions", "note", f"{partition.name} is half detached", "tasuki-mp prune takes it up again"
            )
    today = now.astimezone(UTC).date()
    for ahead, severity, when in ((0, "problem", "today"), (1, "warning", "tomorrow")):
        missing = [parent for parent, there in days.items() if today + timedelta(days=ahead) not in there]
        if missing:
            yield Finding(
                "partitions",
                "problem" if severity == "problem" else "warning",
                f"there is no partition for {when} in {', '.join(missing)}: what finishes then can't be recorded at once",
                "a supervisor makes them when it starts and every hour; by hand: SELECT tasuki.ensure_partitions()",
            )
            return


def judge_stuck(jobs: int, example: int | None, seconds: float | None) -> Iterator[Finding]:
    """Jobs that somebody should have taken back."""
    if jobs:
        yield Finding(
            "stuck",
            "problem",
            f"the lease of {_count(jobs, 'running job')} ended more than another lease ago, up to {seconds or 0:.0f} seconds;"
            f" one of them is {example}",
            "a supervisor takes them back once it has been up for a whole lease: start one, or look at its log",
        )


def judge_held(jobs: int, example: int | None) -> Iterator[Finding]:
    """Jobs whose key is free, and that nobody has let go."""
    if jobs:
        yield Finding(
            "keys",
            "warning",
            f"{_are(jobs, 'job')} held for a key of which fewer run than may; one of them is {example}",
            "a supervisor lets one of each key go every half a minute: start one, or look at its log",
        )


def judge_upkeep(begun_ago: float | None, has_ended: bool | None, supervised_for: float | None) -> Iterator[Finding]:
    """Whether finished jobs are dropped when they have been kept for long enough."""
    if supervised_for is None or supervised_for < 2 * _HOUR:
        return
    if begun_ago is None or begun_ago > 3 * _HOUR or (has_ended is False and begun_ago > _HOUR / 2):
        yield Finding(
            "retention",
            "warning",
            "supervisors are alive, but none has dropped finished jobs for hours: the archive grows",
            "look for 'retention failed' in their logs; where their role does not own the tables, let the owner's cron"
            " run tasuki-mp prune",
        )


def judge_batches(batches: int, example: int | None) -> Iterator[Finding]:
    """Batches that somebody has begun to fill long ago."""
    if batches:
        yield Finding(
            "batches",
            "note",
            f"{_are(batches, 'batch', 'batches')} still being filled after a day, and can't end; one of them is {example}",
            "if nobody fills it any more, tasuki-mp batch cancel ends it; a map goes on by its id",
        )


def judge_schedule(name: str) -> Iterator[Finding]:
    """A schedule that is not paused, and that nobody minds."""
    yield Finding(
        "schedules",
        "warning",
        f"no living program minds the schedule {name}, so it does not fire",
        f"start its application; or tasuki-mp schedule pause {name}, or schedule remove {name} if it is not wanted any more",
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    """`1 job`, `2,345 jobs`."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _are(number: int, one: str, many: str | None = None) -> str:
    """`1 job is`, `2,345 jobs are`."""
    return f"{_count(number, one, many)} {'is' if number == 1 else 'are'}"
