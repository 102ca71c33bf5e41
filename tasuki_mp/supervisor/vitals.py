"""How the supervisor is: its health and its gauges, served over HTTP if that is wanted.

Everything here may be called in the HTTP server's threads, so it reads single values and copies only.
"""

from __future__ import annotations

import logging

from tasuki_mp import logs
from tasuki_mp.config import RunConfig
from tasuki_mp.store.look import DepthProbe
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.flow import Flow
from tasuki_mp.supervisor.http import Health, HttpServer
from tasuki_mp.supervisor.metrics import Collector, Gauges, Metrics

STUCK_AFTER = 5.0
"""Seconds without a tick of the loop, at least, after which the supervisor does not count as alive."""


class Vitals:
    """`ticked_at` and `is_stopping` are kept up to date by the supervisor."""

    def __init__(self, config: RunConfig, flow: Flow, metrics: Metrics) -> None:
        self.ticked_at = clock.now()
        self.is_stopping = False
        self._config = config
        self._flow = flow
        self._depths = DepthProbe(config.dsn)
        self._metrics = metrics
        self._server: HttpServer | None = None

    def start(self) -> None:
        """Serve, if `--http` says where. Raises ConfigError if that address can't be had."""
        if self._config.http is not None:
            host, port = self._config.http
            self._server = HttpServer(host, port, self.health, Collector(self._metrics, self.gauges, self._depths))
            self._server.start()
            logs.event(logging.INFO, "http", url=f"http://{host}:{self._server.port}")

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._depths.close()

    def gauges(self) -> Gauges:
        """What is counted at this moment."""
        slots = self._flow.dispatcher.slots
        return Gauges(
            slots=len(slots),
            children=sum(1 for slot in slots if slot.child),
            # Not only those that serve: one that is replaced may run its last job for long.
            running=sum(1 for slot in slots for child in slot.children if child.inflight),
            ready=len(self._flow.dispatcher),
            outbox=len(self._flow.outbox),
            heartbeat_age=self._flow.heartbeat.age,
            loop_lag=clock.now() - self.ticked_at,
        )

    def health(self) -> Health:
        """Whether the loop lives, and whether jobs can be taken; if not, why."""
        lag = clock.now() - self.ticked_at
        reasons = []
        if lag > max(STUCK_AFTER, self._config.lease / 4):
            reasons.append(f"the loop has been stuck for {lag:.0f} s")
        is_alive = not reasons
        if self._flow.heartbeat.age > self._config.lease / 2:
            reasons.append(f"no heartbeat has reached the database for {self._flow.heartbeat.age:.0f} s")
        if not any(slot.child for slot in self._flow.dispatcher.slots):
            reasons.append("no slot has a child")
        if self.is_stopping:
            reasons.append("stopping")
        return Health(is_alive=is_alive, is_ready=not reasons, reasons=tuple(reasons))
