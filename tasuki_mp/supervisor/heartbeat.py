"""The heartbeat: prolongs every lease in the book, on a thread and a connection of its own.

Neither a handler that holds the GIL (that one is in another process) nor a loop that is blocked stops it. It goes on during
quiesce until the last outcome is written. What it learns about single leases is handed to the loop, which knows whether a
job has finished meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal
from uuid import UUID

import psycopg

from tasuki_mp import logs
from tasuki_mp.store import work
from tasuki_mp.store.connect import connect
from tasuki_mp.store.words import in_words
from tasuki_mp.store.work import Beat
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.book import LeaseBook
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.link import cut

Key = tuple[int, int]
Verdict = Literal["held", "cancel", "busy", "lost"]
OnVerdicts = Callable[[list[tuple[Key, Verdict]]], None]

LOOK_EVERY: Final = 1.0
"""Seconds between looks for jobs whose row should say where they run, and between tries after a failure."""


class Heartbeat:
    """One thread. `on_verdicts` is called on the loop with every lease that is not simply held."""

    def __init__(
        self, dsn: str, *, owner: UUID, lease_for: float, book: LeaseBook, on_verdicts: OnVerdicts, hooks: Hooks
    ) -> None:
        self._dsn = dsn
        self._owner = owner
        self._lease_for = lease_for
        self._book = book
        self._on_verdicts = on_verdicts
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Event()
        self._is_stopping = False
        self._is_wanted = False
        self._connection: psycopg.Connection[Any] | None = None
        self._thread: threading.Thread | None = None
        self.last_success = clock.now()
        """When the last heartbeat that got through was sent."""
        self.unbroken_since: float | None = None
        """Since when heartbeats have come through without a gap; None while the last one failed."""

    def start(self, failed: Callable[[BaseException], None]) -> None:
        """Begin. `failed` is called on the loop if the thread ends by anything but `stop`."""

        def work() -> None:
            try:
                self._beat_for_ever()
            except BaseException as error:  # noqa: BLE001  whatever it is, leases are no longer prolonged
                self._loop.call_soon_threadsafe(failed, error)

        self._thread = threading.Thread(target=work, name="heartbeat", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread and close its connection."""
        self._is_stopping = True
        self._wake.set()
        if self._connection is not None:
            cut(self._connection)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def beat_now(self) -> None:
        """Beat at the next opportunity: somebody asked to cancel one of our jobs, or we were asleep."""
        self._is_wanted = True
        self._wake.set()

    @property
    def age(self) -> float:
        """Seconds since a heartbeat that got through was sent."""
        return clock.now() - self.last_success

    def _beat_for_ever(self) -> None:
        due = clock.now()
        while not self._is_stopping:
            self._wake.wait(max(0.0, min(LOOK_EVERY, due - clock.now())))
            self._wake.clear()
            is_wanted, self._is_wanted = self._is_wanted, False
            now = clock.now()
            is_due = now >= due or is_wanted
            beats = self._book.beats(at=now) if is_due else self._book.young_beats(at=now)
            if not is_due and not beats:
                continue
            if self._beat(beats):
                if is_due:
                    due = clock.now() + self._lease_for / 3 * (0.9 + 0.2 * random.random())
            else:
                due = clock.now() + min(LOOK_EVERY, self._lease_for / 10) * (0.5 + random.random())
        if self._connection is not None:
            self._connection.close()

    def _beat(self, beats: Sequence[Beat]) -> bool:
        self._hooks.reach("before_heartbeat")
        # The trust window starts before the round trip: a reply that took 20 s must not buy us 20 s extra.
        sent_at = clock.now()
        overdue: threading.Timer | None = None
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._dsn, name="heartbeat")
            overdue = threading.Timer(self._lease_for / 3, cut, [self._connection])
            overdue.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread can be had: TCP's own timeouts have to do
                overdue.start()
            answers = work.heartbeat(self._connection, owner=self._owner, lease_for=self._lease_for, beats=beats)
        except psycopg.Error as error:
            self._failed(error)
            return False
        finally:
            if overdue is not None:
                overdue.cancel()
        self._succeeded(sent_at, beats, answers)
        return True

    def _failed(self, error: psycopg.Error) -> None:
        if self._is_stopping:
            return
        logs.event(logging.WARNING, "heartbeat failed", error=in_words(error), age=round(self.age, 1))
        self.unbroken_since = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _succeeded(self, sent_at: float, beats: Sequence[Beat], answers: list[tuple[int, int, Verdict]]) -> None:
        if self.unbroken_since is None or sent_at - self.last_success > self._lease_for * 2 / 3:
            self.unbroken_since = sent_at
        self.last_success = sent_at
        held = {(id, lease_no) for id, lease_no, verdict in answers if verdict in {"held", "cancel"}}
        noted = [
            (beat.id, beat.lease_no) for beat in beats if beat.pid is not None and (beat.id, beat.lease_no) in held
        ]
        self._book.renewed(held, sent_at=sent_at, noted=noted)
        news: list[tuple[Key, Verdict]] = [
            ((id, lease_no), verdict) for id, lease_no, verdict in answers if verdict in {"cancel", "lost"}
        ]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._on_verdicts, news)
