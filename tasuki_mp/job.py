"""Jobs as values: what a producer inserts, what a supervisor holds a lease on, and the words for their states."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from tasuki_mp.backoff import MAX_DELAY
from tasuki_mp.limits import NONE, Limits, limits

DEFAULT_QUEUE: Final = "default"
DEFAULT_PRIORITY: Final = 2
DEFAULT_MAX_ATTEMPTS: Final = 5
DEFAULT_MAX_CRASHES: Final = 3
LOWEST_PRIORITY: Final = 3
PRIORITIES: Final = range(LOWEST_PRIORITY + 1)
NAME_PATTERN: Final = r"^[A-Za-z0-9_.:-]{1,57}$"
"""What queue names look like: they travel in notifications, whose channel and payload have limits of their own."""


OnConflict = Literal["skip", "replace", "raise"]
"""What happens to a job whose unique key is taken: the one that is there stands; its values are replaced while it is
pending; that is an error."""
OnNeedFailed = Literal["cancel", "run"]
"""What becomes of a job when one that it waits for fails or is canceled: it is canceled too, or runs all the same."""
LONGEST_KEY: Final = 200
LONGEST_UNIQUE_KEY: Final = 300


class State(StrEnum):
    """Where a job stands. The last three are final: a job that reached one never changes again."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self not in (State.PENDING, State.RUNNING)


class Unique(msgspec.Struct, frozen=True):
    """That a job is to be the only one with its key, while it lives, or for an interval from its enqueueing."""

    key: str
    seconds: float | None = None
    on_conflict: OnConflict = "skip"


class Progress(msgspec.Struct, frozen=True):
    """How far a running job says it is."""

    fraction: float | None
    """From 0 to 1; None if it says so in words only."""
    note: str


class JobRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job to insert, as data. Due at `scheduled_at`, or else `delay` seconds after the database's now."""

    handler: str
    payload: str
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    scheduled_at: datetime | None = None
    delay: float = 0.0
    limits: Limits = NONE
    """What is said for this job alone; the rest is its handler's."""
    key: str | None = None
    """What its queue may limit by."""
    unique: Unique | None = None
    needs: tuple[int, ...] = ()
    """Jobs that it waits for."""
    on_need_failed: OnNeedFailed = "cancel"
    followers: tuple[JobRow, ...] = ()
    """Jobs that wait for this one, inserted together with it."""
    schedule: str | None = None
    """The schedule that it comes from; not for those who enqueue to say."""

    @property
    def is_plain(self) -> bool:
        """Whether it can be inserted without a look at other jobs."""
        return self.unique is None and not self.needs and not self.followers


class FailedJob(msgspec.Struct, frozen=True):
    """What a handler that another one names with `on_failed=` is told: the payload of its job."""

    id: int
    handler: str
    queue: str
    attempt: int
    error: dict[str, Any]
    """As it is stored with the job: `kind`, `type`, `message`, and what else is known."""


class Job(msgspec.Struct, frozen=True):
    """One run of a handler, asked for but not yet inserted: an immutable value, checked when it was built.

    Each method returns a new job, so one value serves a transaction, a batch and a test.
    """

    row: JobRow

    def __repr__(self) -> str:
        return f"Job({self.row.handler}, queue={self.row.queue!r}, {len(self.row.payload)} characters of payload)"

    def after(
        self,
        delay: timedelta | float | None = None,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
    ) -> Job:
        """The same job, due that long after the database's now at its insertion. A bare number is seconds."""
        if not isinstance(delay, timedelta | float | int | None):
            raise TypeError(f"after() takes a timedelta or a number of seconds, not {delay!r:.100}")
        given = delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0
        wait = given + days * 86_400 + hours * 3_600 + minutes * 60 + seconds
        if not 0 <= wait <= MAX_DELAY:  # NaN fails this too
            raise ValueError(f"a job can be put off by 0 seconds to a hundred years, not by {wait} seconds")
        return Job(msgspec.structs.replace(self.row, scheduled_at=None, delay=wait))

    def at(self, when: datetime) -> Job:
        """The same job, due at that instant. A datetime without a time zone is refused: it would mean any of them."""
        if not isinstance(when, datetime):
            raise TypeError(f"at() takes a datetime with a time zone, not {when!r:.100}")
        if when.tzinfo is None:
            raise ValueError(f"{when!r} has no time zone; say which one you mean, for example tzinfo=datetime.UTC")
        if abs((when - datetime.now(UTC)).total_seconds()) > MAX_DELAY:
            raise ValueError(f"{when} is more than a hundred years away")
        return Job(msgspec.structs.replace(self.row, scheduled_at=when, delay=0.0))

    def priority(self, priority: int) -> Job:
        """The same job with another priority: 0 runs first, 3 last."""
        if priority not in PRIORITIES:
            raise ValueError(f"priority is 0 (first) to {LOWEST_PRIORITY} (last), not {priority!r}")
        return Job(msgspec.structs.replace(self.row, priority=priority))

    def key(self, key: str) -> Job:
        """The same job under a key that its queue may limit by, such as a tenant's name (`max_running_per_key`)."""
        return Job(msgspec.structs.replace(self.row, key=_checked_key(key)))

    def depends_on(self, ids: Iterable[int], *, on_failure: OnNeedFailed = "cancel") -> Job:
        """The same job, to run only when those jobs have ended.

        If one of them fails or is canceled, so is this one, or with `on_failure="run"` it runs all the same. They must
        have been enqueued by the time this one is.
        """
        return self._waiting((*self.row.needs, *ids), on_failure)

    def then(self, other: Job, *, on_failure: OnNeedFailed = "cancel") -> Job:
        """The same job, with another that is enqueued together with it and runs after it; may be said several times.

        A chain is `a.then(b.then(c))`.
        """
        follower = other._waiting(other.row.needs, on_failure).row
        return Job(msgspec.structs.replace(self.row, followers=(*self.row.followers, follower)))

    def _waiting(self, ids: Iterable[int], on_failure: OnNeedFailed) -> Job:
        if on_failure not in ("cancel", "run"):
            raise ValueError(f"on_failure is 'cancel' or 'run', not {on_failure!r}")
        needs = tuple(sorted(set(ids)))
        if any(type(need) is not int for need in needs):
            raise ValueError(f"a job waits for jobs by their ids, not {needs!r:.100}")
        return Job(msgspec.structs.replace(self.row, needs=needs, on_need_failed=on_failure))

    def unique(
        self,
        key: str | Collection[str] | None = None,
        *,
        scope: Literal["live"] | timedelta = "live",
        on_conflict: OnConflict = "skip",
    ) -> Job:
        """The same job, to be inserted only if its handler has none with that key.

        `key` is a text, or the names of the arguments that make it; by default all of them do. `scope` is how long the
        key is taken: while the job lives, or for an interval from its enqueueing. Raises ValueError.
        """
        if on_conflict not in ("skip", "replace", "raise"):
            raise ValueError(f"on_conflict is 'skip', 'replace' or 'raise', not {on_conflict!r}")
        seconds = None
        if isinstance(scope, timedelta):
            seconds = scope.total_seconds()
            if not 0 < seconds <= MAX_DELAY:
                raise ValueError(f"scope must be more than 0 seconds and at most a hundred years, not {scope!r}")
        elif scope != "live":
            raise ValueError(f"scope is 'live' or a timedelta, not {scope!r}")
        text = _checked_key(key) if isinstance(key, str) else _key_of(self.row.payload, key)
        unique = Unique(f"{self.row.handler}:{text}"[:LONGEST_UNIQUE_KEY], seconds, on_conflict)
        return Job(msgspec.structs.replace(self.row, unique=unique))

    def limits(
        self,
        *,
        timeout: timedelta | float | None = None,
        soft_timeout: timedelta | float | None = None,
        memory: str | int | None = None,
        cpus: int | None = None,
    ) -> Job:
        """The same job with limits of its own in place of its handler's; what is not given stays.

        Seconds or a timedelta; bytes or a text like `"2GiB"`; units of the host's `--procs`. Raises ValueError.
        """
        given = limits(timeout=timeout, soft_timeout=soft_timeout, memory=memory, cpus=cpus)
        return Job(msgspec.structs.replace(self.row, limits=given.over(self.row.limits)))


def row_of(job: Job) -> JobRow:
    """What a job inserts. Raises TypeError for anything else, with the usual mistake in mind."""
    # Whoever has no type checker: a handler's plain call runs it and gives its result.
    if not isinstance(job, Job):
        raise TypeError(f"{job!r:.200} is no Job; jobs are made by handler.job(...)")
    return job.row


def _checked_key(key: str) -> str:
    text: object = key
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_KEY or not text.isprintable():
        raise ValueError(f"a key is a text of 1 to {LONGEST_KEY} printable characters, not {key!r:.100}")
    return text


def _key_of(payload: str, names: Collection[str] | None) -> str:
    """A key from these arguments, or from all: the same for the same values, in whatever order they were given."""
    arguments: dict[str, Any] = msgspec.json.decode(payload)
    if names is not None:
        if unknown := sorted(set(names) - arguments.keys()):
            raise ValueError(f"the key is to be made of arguments that are not in the payload: {', '.join(unknown)}")
        arguments = {name: arguments[name] for name in names}
    text = msgspec.json.encode(arguments, order="sorted")
    return text.decode() if len(text) <= 80 and text.decode().isprintable() else hashlib.sha256(text).hexdigest()


class Lease(msgspec.Struct, frozen=True, gc=False):
    """The time-limited right to run one attempt of a job, as the database gave it out.

    `(id, lease_no)` is unique for ever: the fence. `sent_at` is this host's CLOCK_BOOTTIME in seconds from before the
    request was sent, so `sent_at + lease` is never later than the database's own idea of the lease's end.
    """

    id: int
    lease_no: int
    queue: str
    handler: str
    priority: int
    attempt: int
    max_attempts: int
    crashes: int
    payload: str
    scheduled_at: datetime
    """When it was due; with the id, its place in the lease index."""
    waited: float
    """Seconds between the instant the job was due and its leasing, by the database's clock."""
    limits: str | None = None
    """What is said for this job alone, as JSON text; see `read_limits`."""
    interruptions: int = 0
    """How often it was started and then given back."""
    last_error_kind: str | None = None
    checkpoint: str | None = None
    """What its last attempt left for this one, as JSON text."""
    sent_at: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        return (self.id, self.lease_no)

    def facts(self, slot: int | None = None) -> dict[str, Any]:
        """What each line of the log that is about this attempt says of it."""
        return {"job": self.id, "handler": self.handler, "attempt": self.attempt, "slot": slot}
