"""A real server on a free port, asked over real connections."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tasuki_mp.errors import ConfigError
from tasuki_mp.supervisor.http import Health, HttpServer
from tasuki_mp.supervisor.metrics import Collector, Gauges, Metrics
from tests.unit.test_metrics import parsed, value

WELL = Health(is_alive=True, is_ready=True)


class Patient:
    """What the server asks about the supervisor's health; a test changes it."""

    def __init__(self) -> None:
        self.health = WELL

    def __call__(self) -> Health:
        return self.health


def made(host: str, patient: Patient | None = None, metrics: Metrics | None = None) -> HttpServer:
    gauges = Gauges(slots=2, children=2, running=0, ready=0, outbox=0, heartbeat_age=None, loop_lag=0.0)
    return HttpServer(host, 0, patient or Patient(), Collector(metrics or Metrics(), lambda: gauges))


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(patient: Patient, metrics: Metrics) -> Iterator[HttpServer]:
    running = made("127.0.0.1", patient, metrics)
    running.start()
    yield running
    running.stop()


def ask(server: HttpServer, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, server.port, timeout=60)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answer(server: HttpServer, path: str) -> tuple[int, Any]:
    status, body = ask(server, path)
    return status, json.loads(body)


def test_a_well_supervisor(server: HttpServer) -> None:
    assert answer(server, "/healthz") == (200, {"alive": True, "reasons": []})
    assert answer(server, "/readyz") == (200, {"ready": True, "reasons": []})


def test_one_that_lives_but_can_take_no_jobs(server: HttpServer, patient: Patient) -> None:
    patient.health = Health(is_alive=True, is_ready=False, reasons=("no slot has a child",))
    assert answer(server, "/healthz")[0] == 200
    assert answer(server, "/readyz") == (503, {"ready": False, "reasons": ["no slot has a child"]})


def test_one_that_is_stuck(server: HttpServer, patient: Patient) -> None:
    patient.health = Health(is_alive=False, is_ready=True, reasons=("stuck",))
    assert answer(server, "/healthz") == (503, {"alive": False, "reasons": ["stuck"]})
    assert answer(server, "/readyz")[0] == 503


def test_metrics_are_what_prometheus_reads(server: HttpServer, metrics: Metrics) -> None:
    metrics.job_finished("thumbnail", "completed", seconds=1.0, waited=0.0)
    status, body = ask(server, "/metrics")
    found = parsed(body.decode())
    assert status == 200
    assert value(found, "tasuki_jobs_total", handler="thumbnail", outcome="completed") == 1
    assert value(found, "tasuki_slots") == 2
    assert value(found, "process_open_fds") > 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/metricsx", 404), ("POST", "/healthz", 405)]
)
def test_anything_else_is_refused(server: HttpServer, method: str, path: str, status: int) -> None:
    assert ask(server, path, method)[0] == status


def test_head_has_no_body(server: HttpServer) -> None:
    assert ask(server, "/healthz", "HEAD") == (200, b"")


def test_a_client_that_says_nothing_keeps_nobody_waiting(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(b"GET /hea")
        assert answer(server, "/healthz")[0] == 200


def test_a_port_that_is_taken_is_a_mistake_of_the_user(server: HttpServer) -> None:
    second = HttpServer("127.0.0.1", server.port, Patient(), Collector(Metrics(), lambda: pytest.fail("asked")))
    with pytest.raises(ConfigError, match=rf"can't listen on 127\.0\.0\.1:{server.port}: Address already in use"):
        second.start()
    second.stop()


def test_it_may_be_started_and_stopped_twice() -> None:
    server = made("127.0.0.1")
    server.stop()
    server.start()
    server.start()
    assert answer(server, "/healthz")[0] == 200
    port = server.port
    server.stop()
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "tasuki-mp http"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = made("::1")
    try:
        server.start()
    except ConfigError:
        pytest.skip("no IPv6 loopback here")
    try:
        assert ask(server, "/healthz", host="::1")[0] == 200
    finally:
        server.stop()
