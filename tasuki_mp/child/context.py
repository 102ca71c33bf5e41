"""What a handler can ask for by declaring a parameter `ctx: Context`: which job it is running, and which attempt of it."""

from __future__ import annotations

from typing import Final, Protocol

from tasuki_mp import wire
from tasuki_mp.wire import StopReason


class Page(Protocol):
    """The words that this child shares with its supervisor (`wire.PAGE_…`)."""

    def __getitem__(self, index: int, /) -> int: ...


_NO_PAGE: Final[Page] = (0,) * wire.PAGE_WORDS


class Context:
    """The job that a handler is running.

    `(job_id, lease_no)` is unique for ever and grows with every lease of the job: use it as an idempotency key, or as a
    fencing token in writes to other systems (refuse a write whose `lease_no` is lower than one already seen).
    """

    __slots__ = ("_page", "attempt", "handler", "job_id", "lease_no", "max_attempts", "queue")

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
    ) -> None:
        self._page = page
        self.job_id = job_id
        self.lease_no = lease_no
        self.handler = handler
        self.queue = queue
        self.attempt = attempt
        """The ordinal of this run, from 1."""
        self.max_attempts = max_attempts

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure of this run is final."""
        return self.attempt >= self.max_attempts

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

    def __repr__(self) -> str:
        return f"Context(job {self.job_id}, handler {self.handler!r}, attempt {self.attempt} of {self.max_attempts})"
