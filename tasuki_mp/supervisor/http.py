"""`/healthz`, `/readyz` and `/metrics` of a supervisor, on a thread of their own; off unless `--http` says where.

Read-only, without authentication, and on loopback unless told otherwise. What it serves comes from callables that must
be safe to call from its threads.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec

from tasuki_mp.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from tasuki_mp.supervisor.metrics import Collector

REQUEST_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send its request."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the supervisor works at all, and whether it can take jobs now; if not, why."""

    is_alive: bool
    is_ready: bool
    reasons: tuple[str, ...] = ()


class HttpServer:
    """Serves until stopped. `stop` may be called twice, or before `start`."""

    def __init__(self, host: str, port: int, health: Callable[[], Health], collector: Collector) -> None:
        self._address = (host, port)
        self._health = health
        self._collector = collector
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port in use, once started: a free one if 0 was asked for."""
        return self._address[1] if self._server is None else int(self._server.server_address[1])

    def start(self) -> None:
        """Listen. Raises ConfigError when the address can't be had."""
        if self._server is not None:
            return
        try:
            server = _Server(self._address)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            host, port = self._address
            raise ConfigError(f"--http: can't listen on {host}:{port}: {reason}") from error
        server.set_app(_application(self._health, self._collector))
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="tasuki-mp http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None


def _application(health: Callable[[], Health], collector: Collector) -> Callable[..., Iterable[bytes]]:
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    metrics_app: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def answer(status: HTTPStatus, content: dict[str, object]) -> list[bytes]:
            body = msgspec.json.encode(content) + b"\n"
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            start_response(f"{status.value} {status.phrase}", [*headers, ("Cache-Control", "no-store")])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET"})
        match environ.get("PATH_INFO", ""):
            case "/metrics":
                return metrics_app(environ, start_response)
            case "/healthz":
                now = health()
                return answer(_status(now.is_alive), {"alive": now.is_alive, "reasons": now.reasons})
            case "/readyz":
                now = health()
                is_ready = now.is_alive and now.is_ready
                return answer(_status(is_ready), {"ready": is_ready, "reasons": now.reasons})
            case _:
                return answer(HTTPStatus.NOT_FOUND, {"error": "there are /healthz, /readyz and /metrics"})

    return application


def _status(is_well: bool) -> HTTPStatus:
    return HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the base class's
        """Nothing: a probe every second is no news."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Each request on a thread of its own, so that a client that hangs keeps no probe waiting."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # The base class asks the DNS for the host's name, which can take half a minute and is used for nothing here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()
