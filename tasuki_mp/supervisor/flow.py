"""The way of a job through the supervisor: leased, dispatched, ended, settled, written down.

Joins the long-lived parts by implementing what each of them tells: the slots what became of jobs and children, the leaser
what it took, the heartbeat what others decided, the outbox what is on record. Everything here runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from tasuki_mp import logs, wire
from tasuki_mp.followups import Spool
from tasuki_mp.job import JobRow, Lease
from tasuki_mp.limits import NONE, Limits, Reach, read_limits
from tasuki_mp.outcome import (
    CancelObeyed,
    ErrorInfo,
    ErrorKind,
    Interrupted,
    NotStarted,
    Outcome,
    Policy,
    Raised,
    Returned,
    Settled,
    completed,
    settle,
)
from tasuki_mp.supervisor import clock, tasks
from tasuki_mp.supervisor.attic import Attic
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.child import Child, Death, Key
from tasuki_mp.supervisor.closer import Closer
from tasuki_mp.supervisor.deadlines import Deadlines
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.estimate import Estimates
from tasuki_mp.supervisor.heartbeat import Heartbeat, Verdict
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.keeper import Keeper, Running
from tasuki_mp.supervisor.leaser import Leaser
from tasuki_mp.supervisor.memory import Memory
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.outbox import Entry, Outbox
from tasuki_mp.supervisor.reaper import Reaper
from tasuki_mp.supervisor.recycle import Recycling
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.stopping import Stopping
from tasuki_mp.supervisor.usage import Used, usage_json

TRUST_MARGIN = 1.0
"""Seconds before a lease's end when it is no longer trusted; a quarter of a lease that is shorter than four of them."""
_DEFAULT_POLICY = Policy()


class Flow:
    """Owns the book and the dispatcher; is given the other parts by the supervisor that starts them."""

    outbox: Outbox
    heartbeat: Heartbeat
    keeper: Keeper
    reaper: Reaper
    closer: Closer
    leaser: Leaser | None = None
    """None until the first child has said which handlers there are."""

    def __init__(
        self,
        *,
        lease_for: float,
        memory_limit: int,
        recycling: Recycling,
        metrics: Metrics,
        hooks: Hooks,
        on_idle: Callable[[], None],
        on_hello: Callable[[wire.Hello], None],
        on_start_failed: Callable[[Slot, Exception, int], None],
        failed: tasks.Failed,
    ) -> None:
        self.book = LeaseBook(lease_for=lease_for)
        self._lease_for = lease_for
        self.estimates = Estimates()
        self.dispatcher = Dispatcher(
            self.book,
            self.estimates,
            settle=self._settle_unrun,
            watch=self._watch,
            stale=self._beat_now,
            hooks=hooks,
        )
        self.stopping = Stopping(self.dispatcher, settle=self._settle_unrun, failed=failed)
        self.deadlines = Deadlines(self.stopping, failed=failed)
        self.attic = Attic()
        self.has_work = asyncio.Event()
        """Set whenever jobs come; cleared by who waits for it."""
        self.finished = 0
        """Attempts that have ended here."""
        self._errands = tasks.Errands(failed)
        self.memory = Memory(
            self.dispatcher, limit=memory_limit, recycling=recycling, stop=self.stopping.kill, run=self._errands.run
        )
        self._metrics = metrics
        self._hooks = hooks
        self._on_idle = on_idle
        self._on_hello = on_hello
        self._on_start_failed = on_start_failed
        self.failed = failed

    # ── from the leaser ───────────────────────────────────────────────────────────────────────────────────────────────

    def wants(self) -> int:
        return 0 if self.outbox.is_full else self.dispatcher.wants()

    def reach(self) -> Reach:
        return self.dispatcher.reach_now

    def leased(self, leases: list[Lease]) -> None:
        logs.event(logging.DEBUG, "leased", jobs=len(leases))
        self.has_work.set()
        self.dispatcher.add([lease for lease in leases if not self._has_unfit_limits(lease)])

    def _has_unfit_limits(self, lease: Lease) -> bool:
        """Whether the job's own limits can't be used, as only a row inserted by hand can have: then it has failed."""
        if lease.limits is None:
            return False
        try:
            self.dispatcher.limits_of(lease)
        except ValueError as error:
            unfit = ErrorInfo(kind=ErrorKind.BAD_PAYLOAD, type="ValueError", message=str(error))
            self._settle_unrun(lease, Raised(unfit, is_retryable=False))
            return True
        return False

    def leased_again(self, older: list[Lease]) -> None:
        for lease in older:
            if lease.key in self.outbox:
                continue  # it ended with us, and only the reply that says so has been overtaken
            place = self.dispatcher.child_running(lease.key)
            facts = lease.facts(None if place is None else place[0].index)
            logs.event(logging.WARNING, "job leased again while held, older run is stopped", **facts)
            self._drop(lease.key)

    def found_nothing(self) -> None:
        self._maybe_idle()

    # ── from the slots ────────────────────────────────────────────────────────────────────────────────────────────────

    def slot_ready(self, slot: Slot, hello: wire.Hello) -> None:
        self._on_hello(hello)
        child = slot.child
        logs.event(logging.DEBUG, "child ready", slot=slot.index, pid=child.pid if child else None)
        if child is not None:
            self.memory.meet(child, forkserver=hello.forkserver_pid)
        self.dispatcher.pump()
        self._has_room()

    def job_finished(
        self, slot: Slot, child: Child, lease: Lease, frame: wire.Finished, output: str, spool: Spool | None
    ) -> None:
        self._hooks.reach("after_result")
        ran_for = (frame.ended_ns - frame.started_ns) / 1e9
        if not isinstance(frame.outcome, CancelObeyed):  # that says nothing of how long it would have taken
            self.estimates.add(lease.handler, ran_for)
        child.is_slow = False
        since_start = clock.now() - frame.started_ns / 1e9
        used, left = self.memory.finished(slot, child, lease, frame.used, ran_for), frame.checkpoint
        followups = tuple(frame.followups)
        self._ended(slot, child, lease, frame.outcome, since_start, ran_for, used, left, output, followups, spool)

    def keep_now(self, key: Key) -> None:
        self.keeper.keep_now(key)

    def frames_read(self, child: Child) -> float:
        self.dispatcher.pump()
        self._has_room()
        if not child.inflight and self.dispatcher.is_idle:
            self.outbox.hurry()
        return self.dispatcher.rest_of(child)

    def job_ended(self, slot: Slot, child: Child, lease: Lease, outcome: Outcome, ran_for: float, output: str) -> None:
        outcome, used = self.memory.explain(child, lease, outcome)
        self._ended(slot, child, lease, outcome, ran_for, ran_for, used, _checkpoint_of(child, lease), output)

    def jobs_returned(self, leases: list[Lease]) -> None:
        self.dispatcher.put_back(leases)

    def child_died(self, slot: Slot, child: Child, death: Death, lease: Lease | None, *, was_expected: bool) -> None:
        if not was_expected:
            ran = {"slot": slot.index} if lease is None else lease.facts(slot.index)
            logs.event(logging.WARNING, "child died", pid=child.pid, how=str(death), **ran)
            self._metrics.child_died(death.signal or "exit")
        self.memory.forget(child)
        self._errands.run(asyncio.to_thread(self._clear_up_after, child.pid))

    def _clear_up_after(self, pid: int) -> None:
        self.reaper.sweep()  # first: what is left of it may still be writing
        self.attic.clear_after(pid)

    def start_failed(self, slot: Slot, error: Exception, failures: int) -> None:
        self._on_start_failed(slot, error, failures)

    # ── from the heartbeat ────────────────────────────────────────────────────────────────────────────────────────────

    def verdicts(self, news: list[tuple[Key, Verdict]]) -> None:
        """What the database says of single leases; what has ended meanwhile is decided by finish alone."""
        for key, verdict in news:
            if verdict == "cancel" and key in self.book and key not in self.outbox:
                self._cancel(key)
            elif verdict == "lost" and (held := self.book.get(key)) is not None and key not in self.outbox:
                facts = held.lease.facts(None if held.child is None else held.child.slot)
                logs.event(logging.WARNING, "lease lost", **facts, lease_no=key[1])
                self._metrics.lease_lost()
                self._drop(key)
        self.dispatcher.pump()

    # ── from the outbox ───────────────────────────────────────────────────────────────────────────────────────────────

    def leases_over(self, keys: Sequence[Key]) -> None:
        self.book.remove(keys)
        for key in keys:
            self.stopping.ended(key)
            self.deadlines.forget(key)
        if not self.outbox:
            self._maybe_idle()

    def outbox_has_room(self) -> None:
        self._has_room()

    def goes_again(self) -> None:
        if self.leaser is not None:
            self.leaser.look_ahead()

    # ── from the keeper ───────────────────────────────────────────────────────────────────────────────────────────────

    def saying(self) -> Iterator[Running]:
        """What runs now, each with what it says of itself; what has ended says it with its outcome."""
        for slot in self.dispatcher.slots:
            for child in slot.children:
                running = child.running()
                if running is None or child.state is None:
                    continue
                lease, _ = running
                if lease.key in self.book and lease.key not in self.outbox:
                    yield Running(lease, child.state)

    def batches_touched(self, ids: set[int]) -> None:
        self.closer.touched(ids)

    # ── from the supervisor ───────────────────────────────────────────────────────────────────────────────────────────

    def kill_untrusted(self) -> None:
        """Kill the jobs whose lease can't be trusted any more, of handlers that asked for that (`fence="kill"`)."""
        now = clock.now()
        margin = min(TRUST_MARGIN, self._lease_for / 4)
        for slot in self.dispatcher.slots:
            for child in slot.children:
                for key, lease in list(child.inflight.items()):
                    if self._policy(lease).fence == "kill" and not self.book.is_trusted(key, at=now, margin=margin):
                        self.stopping.kill(key, Interrupted())

    def ask_all_to_stop(self) -> None:
        """Let whatever runs know that we are about to end; a handler that asks for it may come to an end by itself."""
        for slot in self.dispatcher.slots:
            for child in slot.children:
                for key in list(child.inflight):
                    child.ask_stop(key, "shutdown")

    def interrupt_all(self) -> None:
        """Kill whatever runs; it is given back."""
        for slot in self.dispatcher.slots:
            for child in slot.children:
                for key in list(child.inflight):
                    self.stopping.kill(key, Interrupted())

    async def settled(self) -> None:
        """Wait for the small tasks: kills on their way, sweeps."""
        await self.deadlines.stop()
        await self.stopping.settled()
        await self._errands.settled()

    # ── within ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _maybe_idle(self) -> None:
        if not self.outbox and self.dispatcher.is_idle:
            self._on_idle()

    def _beat_now(self) -> None:
        self.heartbeat.beat_now()

    def _has_room(self) -> None:
        if self.leaser is not None and self.wants() > 0:
            self.leaser.room()

    def _cancel(self, key: Key) -> None:
        if (held := self.book.get(key)) is not None:
            self.stopping.cancel(key, grace=self._policy(held.lease).cancel_grace)

    def _drop(self, key: Key) -> None:
        """This lease is not ours any more: stop its job and forget whatever comes of it."""
        self.stopping.drop(key)
        if self.dispatcher.child_running(key) is not None:
            self.dispatcher.blocked.add(key[0])  # should we lease it again, before it is dead
        self.deadlines.forget(key)
        self.book.remove([key])

    def _watch(self, slot: Slot, child: Child, lease: Lease, limits: Limits) -> None:
        self.deadlines.dispatched(slot, child, lease, limits)

    def _ended(
        self,
        slot: Slot,
        child: Child,
        lease: Lease,
        outcome: Outcome,
        since_start: float,
        ran_for: float,
        used: Used,
        checkpoint: str | None,
        output: str,
        followups: tuple[JobRow, ...] = (),
        spool: Spool | None = None,
    ) -> None:
        key = lease.key
        self.stopping.ended(key)
        outcome = self.deadlines.ended(key, outcome, ran_for=ran_for)
        self.dispatcher.blocked.discard(lease.id)
        if not self.book.unassign(lease):
            if spool is not None:
                spool.close()
            return  # the lease was lost while it ran: somebody else decides
        self.finished += 1
        settled = self._decide(lease, outcome)
        error = settled.error
        usage = usage_json(
            place=child.place, seconds=ran_for, used=used, waited=lease.waited, signal=error.signal if error else ""
        )
        self._metrics.job_finished(lease.handler, settled.kind, seconds=ran_for, waited=lease.waited)
        kept = _to_keep(lease, checkpoint)
        self.outbox.put(Entry(lease, settled, usage, since_start, clock.now(), kept, output, followups, spool))
        _log(lease, settled, slot.index, ran_for)

    def _settle_unrun(self, lease: Lease, outcome: Outcome) -> None:
        if lease.key in self.book:
            if isinstance(outcome, Interrupted):  # it was in the way of what interrupts jobs, and had not begun
                outcome = NotStarted()
            usage = usage_json(waited=lease.waited)
            settled, checkpoint = self._decide(lease, outcome), _to_keep(lease, None)
            self.outbox.put(Entry(lease, settled, usage, None, clock.now(), checkpoint))

    def _decide(self, lease: Lease, outcome: Outcome) -> Settled:
        if isinstance(outcome, Returned):  # nearly all of them: nothing has to be looked up
            return completed(outcome)
        return settle(
            outcome,
            self._policy(lease),
            attempt=lease.attempt,
            max_attempts=lease.max_attempts,
            crashes=lease.crashes,
            interruptions=lease.interruptions,
            limits=_own_limits(lease),
            memory_most=self.dispatcher.room.memory,
            is_stopping=self.dispatcher.is_quiescing,
        )

    def _policy(self, lease: Lease) -> Policy:
        return self.dispatcher.policies.get(lease.handler, _DEFAULT_POLICY)


def _checkpoint_of(child: Child, lease: Lease) -> str | None:
    """The last checkpoint of a job whose process is dead; empty if it is on record."""
    state = child.state
    if state is None or (last := state.checkpoint(lease.key)) is None:
        return None
    version, text = last
    return text if version > state.kept_checkpoint else ""


def _to_keep(lease: Lease, left: str | None) -> str | None:
    """What finish is told of the checkpoint: one from before stays on record."""
    return "" if left is None and lease.checkpoint is not None else left


def _own_limits(lease: Lease) -> Limits:
    if lease.limits is None:
        return NONE
    try:
        return read_limits(lease.limits)
    except ValueError:  # that is what the job has failed of
        return NONE


def _log(lease: Lease, settled: Settled, slot: int, ran_for: float) -> None:
    if settled.kind == "completed" and not logs.log.isEnabledFor(logging.DEBUG):  # nearly always
        return
    level = logging.DEBUG
    message = f"job {settled.kind}"
    facts: dict[str, object] = {}
    match settled.kind:
        case "failed":
            level = logging.ERROR
        case "retry":
            level, message = logging.WARNING, "job will be retried"
            facts["delay"] = round(settled.delay, 3)
        case "snooze":
            message = "job snoozed"
            facts["delay"] = round(settled.delay, 3)
        case "release":
            level, message = logging.INFO, "job given back"
        case "canceled":
            level = logging.INFO
        case _:
            pass
    if not logs.log.isEnabledFor(level):
        return
    if settled.error is not None:
        facts["error"] = f"{settled.error.type}: {settled.error.message}"
        facts["kind"] = settled.error.kind.value
    logs.event(
        level,
        message,
        **lease.facts(slot),
        seconds=round(ran_for, 6),
        **facts,
    )
