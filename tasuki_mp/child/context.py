"""What a handler can ask for by declaring a parameter `ctx: Context`: which job it is running, and which attempt of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from tasuki_mp import payload, wire
from tasuki_mp.child.joblog import JOB_LOGGER
from tasuki_mp.child.scratch import Scratch
from tasuki_mp.errors import CheckpointError
from tasuki_mp.followups import FollowUps
from tasuki_mp.job import Job
from tasuki_mp.statefile import Key
from tasuki_mp.wire import StopReason

T = TypeVar("T")


class Page(Protocol):
    """The words that this child shares with its supervisor (`wire.PAGE_…`)."""

    def __getitem__(self, index: int, /) -> int: ...


class Board(Protocol):
    """Takes what the job says of itself: `tasuki_mp.child.board.Board`, or what stands in for it in tests."""

    def progress(self, key: Key, fraction: float | None, note: str, /) -> None: ...
    def checkpoint(self, key: Key, state: Any, /, *, wait: bool) -> None: ...


_NO_PAGE: Final[Page] = (0,) * wire.PAGE_WORDS
_NO_SCRATCH: Final = Scratch("")


class Context:
    """The job that a handler is running.

    `(job_id, lease_no)` is unique for ever and grows with every lease of the job: use it as an idempotency key, or as a
    fencing token in writes to other systems (refuse a write whose `lease_no` is lower than one already seen).
    """

    __slots__ = (
        "_board",
        "_checkpoint",
        "_followups",
        "_page",
        "_scratch",
        "attempt",
        "cpus",
        "handler",
        "job_id",
        "lease_no",
        "max_attempts",
        "queue",
    )

    def __init__(
        self,
        *,
        job_id: int,
        lease_no: int,
        handler: str,
        queue: str,
        attempt: int,
        max_attempts: int,
        page: Page = _NO_PAGE,
        board: Board | None = None,
        checkpoint: str | None = None,
        scratch: Scratch = _NO_SCRATCH,
        cpus: int = 1,
        followups: FollowUps | None = None,
    ) -> None:
        self._page = page
        self._board = board
        self._checkpoint = checkpoint
        self._scratch = scratch
        self._followups = followups if followups is not None else FollowUps()
        self.job_id = job_id
        self.lease_no = lease_no
        self.handler = handler
        self.queue = queue
        self.attempt = attempt
        """The ordinal of this run, from 1."""
        self.max_attempts = max_attempts
        self.cpus = cpus
        """The units of the host that this job has, and so the threads that it may use."""

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure of this run is final."""
        return self.attempt >= self.max_attempts

    @property
    def tmpdir(self) -> Path:
        """A folder of this run alone, made when it is first asked for, and removed when the job ends, however it ends."""
        return self._scratch.folder(self.job_id, self.lease_no)

    @property
    def log(self) -> logging.Logger:
        """A logger whose records say which job they are of, as all do that are made here; heard from INFO on.

        Where the application has configured nothing, it writes to standard error, and so into the job's output.
        """
        return logging.getLogger(f"{JOB_LOGGER}.{self.handler}")

    @property
    def should_stop(self) -> bool:
        """Whether this job should come to an end: for a cancel, a soft timeout, or since its supervisor shuts down.

        Costs a tenth of a microsecond: ask in every turn of a loop, from any thread. It stays true.
        """
        return self._page[wire.PAGE_STOP] != 0 and self.stop_reason is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it should: the weightiest of "cancel", "timeout", "shutdown"; None while it need not."""
        page = self._page
        reasons = page[wire.PAGE_STOP]
        if not reasons:
            return None
        if (page[wire.PAGE_STOP_JOB], page[wire.PAGE_STOP_LEASE_NO]) == (self.job_id, self.lease_no):
            if reasons & wire.STOP_CANCEL:
                return "cancel"
            if reasons & wire.STOP_TIMEOUT:
                return "timeout"
        return "shutdown" if reasons & wire.STOP_SHUTDOWN else None

    def progress(self, fraction: float | None, note: str | None = None) -> None:
        """Say how far the job is, from 0 to 1, and in words: `ctx.progress(0.4, "chunk 12 of 30")`.

        Whoever looks sees it within two seconds. Costs two or three microseconds: no need to say it rarely.
        """
        if self._board is not None:
            self._board.progress((self.job_id, self.lease_no), fraction, note or "")

    def checkpoint(self, state: Any, *, wait: bool = False) -> None:
        """Leave `state` for the next attempt of this job, in place of what was left before.

        On record within two seconds, also if this process or its supervisor dies at once; then the one before may be the
        last. With `wait=True` it returns when the state is on record, and so waits for a database that is away. The state
        is what JSON can say, up to 1 MiB of it, or a dataclass or struct; CheckpointError for anything else.
        """
        if self._board is not None:
            self._board.checkpoint((self.job_id, self.lease_no), state, wait=wait)

    @property
    def restored(self) -> Any:
        """What an earlier attempt left by `checkpoint`, as JSON has it; None at the first attempt, or if it left nothing."""
        return None if self._checkpoint is None else msgspec.json.decode(self._checkpoint)

    def restored_as(self, kind: type[T]) -> T | None:
        """The same as a value of that type. Raises CheckpointError if it does not fit, as after a change of the type."""
        if self._checkpoint is None:
            return None
        try:
            return msgspec.json.decode(self._checkpoint, type=kind, dec_hook=payload.dec_hook)
        except msgspec.ValidationError as error:
            path, reason = payload.place(error)
            raise CheckpointError(f"the checkpoint of job {self.job_id} is no {kind}: at {path}: {reason}") from error

    def enqueue(self, job: Job) -> None:
        """Insert this job in the transaction that completes the running one, or snoozes it; else never.

        It is dropped if this attempt fails, asks for a retry, is canceled, or loses its lease.
        """
        self._followups.add(job)

    def enqueue_many(self, jobs: Iterable[Job]) -> None:
        """The same for any number of jobs, in constant memory."""
        for job in jobs:
            self._followups.add(job)

    def __repr__(self) -> str:
        return f"Context(job {self.job_id}, handler {self.handler!r}, attempt {self.attempt} of {self.max_attempts})"
