"""What a handler can ask for by declaring a parameter `ctx: Context`: which job it is running, and which attempt of it."""

from __future__ import annotations


class Context:
    """The job that a handler is running.

    `(job_id, lease_no)` is unique for ever and grows with every lease of the job: use it as an idempotency key, or as a
    fencing token in writes to other systems (refuse a write whose `lease_no` is lower than one already seen).
    """

    __slots__ = ("attempt", "handler", "job_id", "lease_no", "max_attempts", "queue")

    def __init__(
        self, *, job_id: int, lease_no: int, handler: str, queue: str, attempt: int, max_attempts: int
    ) -> None:
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

    def __repr__(self) -> str:
        return f"Context(job {self.job_id}, handler {self.handler!r}, attempt {self.attempt} of {self.max_attempts})"
