"""A relay before Postgres that can be told where to fail.

It reads the protocol (version 3) in both directions, so it knows where each message begins and ends, and can cut a
connection exactly before or after one, or forward nothing more without closing anything.

What it can't do is lose packets: a black hole here takes what it is sent, so TCP's own timeouts do not notice it, only
those of the client do. And it runs in threads of the test, so a client there that holds the interpreter while it waits
(libpq's cancel, `PGconn.get_result`) waits for ever.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.waiting import TIMEOUT, NotInTimeError

Direction = Literal["to server", "to client"]

STARTUP: Final = "startup"
CANCEL: Final = "cancel"

_CANCEL_REQUEST: Final = 80877102
_ENCRYPTION_REQUESTS: Final = (80877103, 80877104)
_RECEIVE: Final = 1 << 16


@dataclass(frozen=True)
class Message:
    """One protocol message. `tag` is its type byte as a letter, or `startup` or `cancel`; `body` is all but the head."""

    number: int
    """Counts from 1, over all connections and both directions."""
    connection: int
    application: str
    direction: Direction
    tag: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Fault:
    """Where to fail, and how: at the `at`th message that fits, counted from when the fault is armed."""

    at: int = 1
    direction: Direction | None = None
    tag: str | None = None
    application: str | None = None
    """A part of the connection's application_name."""
    where: Callable[[Message], bool] = lambda _message: True
    is_forwarded: bool = False
    """Whether the message itself still arrives."""
    how: Literal["cut", "black hole"] = "cut"

    def fits(self, message: Message) -> bool:
        """Whether this message counts."""
        return (
            self.direction in (None, message.direction)
            and self.tag in (None, message.tag)
            and (self.application is None or self.application in message.application)
            and self.where(message)
        )


class Armed:
    """A fault that waits for its message; `wait()` for it to have happened."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.message: Message | None = None
        self._left = fault.at
        self._happened = threading.Event()

    def is_due(self, message: Message) -> bool:
        """Count the message; whether it is the one."""
        if self.message is not None or not self.fault.fits(message):
            return False
        self._left -= 1
        if self._left:
            return False
        self.message = message
        return True

    def happened(self) -> None:
        """The connection has failed."""
        self._happened.set()

    def wait(self, *, timeout: float = TIMEOUT) -> Message:
        """The message at which it happened, once it has."""
        if not self._happened.wait(timeout):
            raise NotInTimeError(f"{self.fault} did not come about within {timeout:g} s")
        assert self.message
        return self.message


class FaultProxy:
    """Relays to the server of `dsn`, as a context manager; `proxy.dsn` leads through it.

    Without further ado it forwards everything. Encryption is refused, as a server without it does.
    """

    def __init__(self, dsn: str) -> None:
        parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
        self._upstream = (parts.get("host", "/var/run/postgresql"), int(parts.get("port", "5432")))
        self._listener = socket.create_server(("127.0.0.1", 0))
        parts.pop("hostaddr", None)
        self.dsn = make_conninfo("", **{**parts, "host": "127.0.0.1", "port": str(self._listener.getsockname()[1])})
        self.messages: list[Message] = []
        """All that came by, those that were cut off included."""
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._armed: list[Armed] = []
        self._holes: list[str] = []
        self._is_refusing = False
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # Closing does not wake a thread that waits for connections; this does.
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.cut()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._listener.close()

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def arm(self, fault: Fault) -> Armed:
        """Let the connection of the message that the fault describes fail at that message."""
        armed = Armed(fault)
        with self._lock:
            self._armed.append(armed)
        return armed

    def cut(self, application: str = "") -> int:
        """Cut the connections whose application_name contains this; returns how many there were."""
        cut = [connection for connection in self._living() if application in connection.application]
        for connection in cut:
            connection.cut()
        return len(cut)

    def black_hole(self, application: str = "") -> None:
        """Forward nothing more for these connections, those to come included, and close nothing."""
        with self._lock:
            self._holes.append(application)
        for connection in self._living():
            if application in connection.application:
                connection.flow.clear()

    def refuse(self) -> None:
        """Accept no further connection: they are closed at once, as by a server that is down."""
        self._is_refusing = True

    def heal(self) -> None:
        """Work again: what fell into black holes flows on, new connections are accepted, armed faults are forgotten."""
        with self._lock:
            self._armed.clear()
            self._holes.clear()
        self._is_refusing = False
        for connection in self._living():
            connection.flow.set()

    def connections(self, application: str = "") -> int:
        """How many connections with such an application_name there are."""
        return sum(application in connection.application for connection in self._living())

    def answers(self, application: str = "") -> int:
        """How many statements and handshakes the server has answered on the newest such connection."""
        return next((c.answers for c in reversed(self._living()) if application in c.application), 0)

    # ── relaying ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        for number in itertools.count(1):
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the listener was shut down
            if self._is_refusing:
                client.close()
                continue
            try:
                server = _connect(*self._upstream)
            except OSError:
                client.close()
                continue
            connection = _Connection(number, client, server)
            self._connections.append(connection)
            self._start(self._relay, connection, "to server")
            self._start(self._relay, connection, "to client")

    def _relay(self, connection: _Connection, direction: Direction) -> None:
        try:
            for tag, packet, body in connection.packets(direction):
                if not self._pass(connection, direction, tag, packet, body):
                    break
        except OSError:
            connection.cut()  # one side is gone: so is the other
        finally:
            connection.half_closed(direction)

    def _pass(self, connection: _Connection, direction: Direction, tag: str, packet: bytes, body: bytes) -> bool:
        """Forward one message, unless a fault says otherwise; whether the connection goes on."""
        with self._lock:
            if tag == STARTUP and any(hole in connection.application for hole in self._holes):
                connection.flow.clear()
            message = Message(next(self._numbers), connection.number, connection.application, direction, tag, body)
            self.messages.append(message)
            connection.answers += tag == "Z" and direction == "to client"
            due = [armed for armed in self._armed if armed.is_due(message)]
        if not due:
            connection.flow.wait()
            connection.send(direction, packet)
            return True
        is_cut = due[0].fault.how == "cut"
        connection.flow.clear()  # no answer to this message may slip through
        if due[0].fault.is_forwarded:
            connection.send(direction, packet)
        if is_cut:
            connection.cut()
        for armed in due:
            armed.happened()
        if not is_cut and not due[0].fault.is_forwarded:
            connection.flow.wait()
            connection.send(direction, packet)
        return not is_cut

    def _living(self) -> list[_Connection]:
        return [connection for connection in list(self._connections) if not connection.is_over]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.application = ""
        self.answers = 0
        self.is_over = False
        self.flow = threading.Event()
        self.flow.set()
        self._client = client
        self._server = server
        self._open = 2
        self._lock = threading.Lock()

    def packets(self, direction: Direction) -> Iterator[tuple[str, bytes, bytes]]:
        """The messages that come from one side, to be forwarded: tag, the whole message, its body. Ends with the stream."""
        stream = _Stream(self._client if direction == "to server" else self._server)
        if direction == "to server":
            while (packet := stream.untagged()) is not None:
                (code,) = struct.unpack("!i", packet[4:8])
                if code in _ENCRYPTION_REQUESTS:
                    self._client.sendall(b"N")
                    continue
                if code == _CANCEL_REQUEST:
                    yield CANCEL, packet, packet[4:]
                    return
                words = packet[8:].split(b"\0")
                self.application = (
                    dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()
                )
                yield STARTUP, packet, packet[4:]
                break
        while (packet := stream.tagged()) is not None:
            yield chr(packet[0]), packet, packet[5:]

    def send(self, direction: Direction, packet: bytes) -> None:
        """Forward."""
        (self._server if direction == "to server" else self._client).sendall(packet)

    def cut(self) -> None:
        """End both connections at once. Their relays notice, and close them."""
        with self._lock:
            if not self.is_over:
                self.is_over = True
                _shut(self._client, socket.SHUT_RDWR)
                _shut(self._server, socket.SHUT_RDWR)
        self.flow.set()

    def half_closed(self, direction: Direction) -> None:
        """Nothing more is to be forwarded in this direction."""
        with self._lock:
            _shut(self._server if direction == "to server" else self._client, socket.SHUT_WR)
            self._open -= 1
            if self._open == 0:
                self.is_over = True
                self._client.close()
                self._server.close()


class _Stream:
    """Takes whole messages from a socket; None at its end, also when that comes in the middle of one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def untagged(self) -> bytes | None:
        return self._take(0)

    def tagged(self) -> bytes | None:
        return self._take(1)

    def _take(self, head: int) -> bytes | None:
        if not self._fill(head + 4):
            return None
        (length,) = struct.unpack_from("!i", self._buffer, head)
        if not self._fill(head + length):
            return None
        packet = bytes(self._buffer[: head + length])
        del self._buffer[: head + length]
        return packet

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            chunk = self._sock.recv(_RECEIVE)
            if not chunk:
                return False
            self._buffer += chunk
        return True


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port), timeout=None)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(os.path.join(host, f".s.PGSQL.{port}"))
    except OSError:
        sock.close()
        raise
    return sock


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        return  # the other side was faster
