"""The frames between a supervisor and its children: msgpack over `SOCK_SEQPACKET` pairs, one frame a packet.

A packet is one byte of tag and the frame. A frame too large for a packet travels as a memfd that is passed along with a
packet holding the tag alone. Whoever receives a packet owns it: that is what makes taking back a waiting job atomic.
Nothing here is pickled, so a hostile child can at worst send a frame that is refused.
"""

from __future__ import annotations

import array
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from tasuki_mp.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE, JobRow
from tasuki_mp.limits import NONE, Limits
from tasuki_mp.outcome import Outcome, Policy
from tasuki_mp.schedule import ScheduleInfo

INLINE_LIMIT: Final = 128 * 1024
"""Bytes of the largest frame that goes inline: well below the default socket buffer of 208 KiB."""
_PACKET: Final = INLINE_LIMIT + 16
_FD_SIZE: Final = array.array("i").itemsize

# Words of the page that supervisor and child share; each is 64 bits and written by one side only.
PAGE_JOB: Final = 0  # child: id of the job whose handler is running
PAGE_LEASE_NO: Final = 1  # child
PAGE_STARTED: Final = 2  # child: CLOCK_BOOTTIME in nanoseconds when that handler was entered
PAGE_IN_HANDLER: Final = 3  # child: 1 from just before the handler is entered until its outcome is being sent
PAGE_RECEIVED: Final = 4  # child: how many job frames it has taken from its socket
PAGE_STOP: Final = 5  # supervisor: the STOP_… bits that say why whatever runs should end; 0: it need not
PAGE_STOP_JOB: Final = 6  # supervisor: whom STOP_CANCEL and STOP_TIMEOUT mean
PAGE_STOP_LEASE_NO: Final = 7  # supervisor
PAGE_INTERRUPTED: Final = 8  # child: the STOP_… bits for which an exception was raised in the running handler
PAGE_ASK: Final = 9  # supervisor: how often it has asked where the tasks of an event loop wait
PAGE_TOLD: Final = 10  # child: the last of these questions that it has answered, in the file of stacks
PAGE_USER: Final = 14  # child: CPU time in microseconds that it had used when that handler was entered, in user mode
PAGE_SYSTEM: Final = 15  # child: the same in the kernel
PAGE_WORDS: Final = 16

SIGNAL_INTERRUPT: Final = getattr(signal, "SIGRTMIN", signal.SIGUSR1) + 10
"""Sent to a child: look at the page, and raise in the handler, or tell, what it asks for. A real-time signal, since libraries
and handlers have uses of their own for SIGUSR1 and SIGUSR2."""
SIGNAL_DUMP: Final = SIGNAL_INTERRUPT + 1
"""Sent to a child: write where every thread is into the file of stacks."""
BACKSTOP_SECONDS: Final = 5.0
"""After a job's timeout, the kernel kills its process by itself if the supervisor did not."""

StopReason = Literal["cancel", "timeout", "shutdown"]
STOP_SHUTDOWN: Final = 1
"""The supervisor ends: meant for whatever job this child runs."""
STOP_TIMEOUT: Final = 2
"""The job of PAGE_STOP_JOB and PAGE_STOP_LEASE_NO has exceeded its soft timeout."""
STOP_CANCEL: Final = 4
"""Somebody asked to cancel that job."""


class Extras(msgspec.Struct, frozen=True, array_like=True):
    """What few jobs have: their limits, and what an earlier attempt left."""

    limits: Limits = NONE
    checkpoint: str | None = None


class RunJob(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Supervisor to child: run this."""

    id: int
    lease_no: int
    handler: str
    queue: str
    attempt: int
    max_attempts: int
    payload: str
    extras: Extras | None = None


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Supervisor to child: close the resources and return."""


class HandlerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor knows of a handler."""

    name: str
    queue: str = DEFAULT_QUEUE
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    policy: Policy = Policy()


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    """Child to supervisor, once, with its descriptors: ready to run jobs, or why not."""

    pid: int
    forkserver_pid: int
    handlers: list[HandlerInfo] = []
    schedules: list[ScheduleInfo] = []
    app_version: str = ""
    import_error: str = ""
    """The traceback of the application's import, when it failed."""
    import_seconds: float = 0.0
    leftovers: list[str] = []
    """What the application's import left in the forkserver that a fork would break: threads, sockets."""


class Used(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a job used, its subprocesses that were waited for included."""

    user_us: int = 0
    system_us: int = 0
    peak: int | None = None
    """Bytes at most beyond the child's size at hello, in the child alone."""
    held: int = 0
    """Bytes beyond it that the child still holds now."""


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Child to supervisor: how a job ended. Times are CLOCK_BOOTTIME in nanoseconds."""

    id: int
    lease_no: int
    outcome: Outcome
    started_ns: int
    ended_ns: int
    used: Used
    output_end: int
    """Bytes the child had written to its output when the job ended."""
    retire: str = ""
    """Why this child takes no further job and wants to be replaced; empty if it goes on."""
    checkpoint: str | None = None
    """What the job left for its next attempt, as JSON text; empty if it is on record already, None if it left nothing."""
    is_fixed: bool = False
    """Whether a library in this child can't change its number of threads any more."""
    followups: list[JobRow] = []
    """Jobs to insert with the job's completion; unless they are many: then they are spooled to a file that comes along."""
    recycle: str = ""
    """Why this child should be replaced when that can be done without haste; it goes on until then."""


class Retiring(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Child to supervisor, after a `Finished` that said `retire`: its resources are closed, it may end.

    `is_littered`: jobs left processes behind, so the child stands still and waits to be killed with all of them.
    """

    is_littered: bool


class Keep(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Child to supervisor: the running job waits until this version of its checkpoint is on record."""

    id: int
    lease_no: int
    version: int


class Descriptors(NamedTuple):
    """What comes with a hello: a pidfd of the child, its files of output, of state with a bell, and of stacks."""

    pidfd: int
    output: int
    state: int
    bell: int
    stacks: int


Buffer = bytes | memoryview
ToChild = RunJob | Stop
_ARRAY_FRAMES = Finished | Retiring | Keep
FromChild = Hello | Finished | Retiring | Keep

_encoder = msgspec.msgpack.Encoder()
_decode_to_child: Callable[[Buffer], ToChild] = msgspec.msgpack.Decoder(ToChild).decode
_decode_from_child: Callable[[Buffer], Finished | Retiring | Keep] = msgspec.msgpack.Decoder(_ARRAY_FRAMES).decode
_decode_hello: Callable[[Buffer], Hello] = msgspec.msgpack.Decoder(Hello).decode

# A plain number: combining flags of the enum takes longer than receiving the packet.
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_LOST: Final = int(socket.MSG_CTRUNC)
"""Of a packet with descriptors that this process could not take."""
_HELLO: Final = b"H"
_FRAME: Final = b"F"
_LARGE: Final = b"L"
_LARGE_HELLO: Final = b"B"
_ANNOUNCED: Final = b"D"
"""A packet of its own from a child: descriptors come with the next. To be ready for them at every packet would cost each job
a tenth of what receiving its outcome takes."""
_INLINE: Final = _FRAME[0]


class ClosedError(Exception):
    """The other end is closed: there will be no further frame."""


class FrameError(Exception):
    """A packet that is no frame: the child broke the protocol and can't be trusted with another job."""


def pack(frame: RunJob | Stop | Finished | Retiring | Keep) -> bytes:
    """The frame as bytes for `send_job` or `send_outcome`."""
    return _FRAME + _encoder.encode(frame)


def send_job(sock: socket.socket, packet: bytes) -> None:
    """Send a child what `pack` made, as one packet, which one of several receivers takes whole.

    Raises BlockingIOError on a non-blocking socket that is full, and then nothing of it was sent.
    """
    if len(packet) <= INLINE_LIMIT:
        sock.send(packet)
        return
    fd = _in_memory(packet)
    try:
        send_fds(sock, _LARGE, (fd,))
    finally:
        os.close(fd)


def send_outcome(sock: socket.socket, packet: bytes, *, spool: int | None = None) -> None:
    """Send a supervisor what `pack` made; with an outcome, a file of follow-up jobs may come along. The socket blocks."""
    is_inline = len(packet) <= INLINE_LIMIT
    if is_inline and spool is None:
        sock.send(packet)
        return
    along = () if spool is None else (spool,)
    if is_inline:
        _announce_fds(sock, packet, along)
        return
    fd = _in_memory(packet)
    try:
        _announce_fds(sock, _LARGE, (fd, *along))
    finally:
        os.close(fd)


def send_hello(sock: socket.socket, hello: Hello, fds: Descriptors) -> None:
    """The child's first frame, with what the supervisor needs to watch it."""
    packet = _HELLO + _encoder.encode(hello)
    if len(packet) <= INLINE_LIMIT:
        _announce_fds(sock, packet, fds)
        return
    fd = _in_memory(packet)  # that of some hundreds of handlers
    try:
        _announce_fds(sock, _LARGE_HELLO, (fd, *fds))
    finally:
        os.close(fd)


def _in_memory(packet: bytes) -> int:
    """A file in memory that holds the frame of a packet which is too large."""
    fd = os.memfd_create("tasuki-mp-frame", os.MFD_CLOEXEC)
    try:
        rest = memoryview(packet)[1:]
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def _announce_fds(sock: socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    sock.send(_ANNOUNCED)
    send_fds(sock, packet, fds)


def send_fds(sock: socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    """Send a packet with descriptors; the receiver gets copies of its own."""
    sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


class Receiver:
    """Takes frames from one socket through one buffer, so that receiving allocates nothing but the frame itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_PACKET))
        self._buffers = [self._buffer]
        self._ancillary = socket.CMSG_SPACE((1 + len(Descriptors._fields)) * _FD_SIZE)
        self._is_announced = False
        """Whether the next packet comes with descriptors."""

    def to_child(self, flags: int = 0) -> ToChild:
        """The next job frame. Raises BlockingIOError with MSG_DONTWAIT when there is none, ClosedError at the end."""
        # Ready for a descriptor at every packet: an announcement and what follows it could go to two receivers.
        size, ancillary, _, _ = self._sock.recvmsg_into(self._buffers, self._ancillary, flags | _CLOSE_ON_EXEC)
        if size == 0:
            raise ClosedError
        if self._buffer[0] == _INLINE and not ancillary:  # nearly always
            return _decode_to_child(self._buffer[1:size])
        fds = _descriptors(ancillary)
        try:
            return _decode_to_child(_content(bytes(self._buffer[:1]), self._buffer[1:size], fds))
        finally:
            _close(fds)

    def from_child(self) -> tuple[FromChild, tuple[int, ...]]:
        """The next outcome frame, and descriptors that came with it, owned by the caller.

        With a hello they are its `Descriptors`, with an outcome nothing or a spool of follow-up jobs. Raises
        BlockingIOError when there is none, ClosedError at the end, FrameError for anything that is no frame, and when
        this process may open no more files.
        """
        if self._is_announced:
            return self._with_descriptors()
        size = self._sock.recv_into(self._buffer)
        if size == 0:
            raise ClosedError
        if self._buffer[0] == _INLINE:  # nearly always
            try:
                return _decode_from_child(self._buffer[1:size]), ()
            except (msgspec.MsgspecError, ValueError) as error:
                raise FrameError(str(error)) from error
        if bytes(self._buffer[:size]) != _ANNOUNCED:
            raise FrameError(f"unknown tag {bytes(self._buffer[:1])!r}")
        self._is_announced = True
        return self._with_descriptors()

    def _with_descriptors(self) -> tuple[FromChild, tuple[int, ...]]:
        size, ancillary, flags, _ = self._sock.recvmsg_into(self._buffers, self._ancillary, _CLOSE_ON_EXEC)
        if size == 0:
            raise ClosedError
        tag, body, fds = bytes(self._buffer[:1]), self._buffer[1:size], _descriptors(ancillary)
        if flags & _LOST:
            _close(fds)
            raise FrameError("its descriptors could not be received")
        # Another thread of the child may have sent something between the announcement and what it announces.
        self._is_announced = not fds
        try:
            if tag == _HELLO and len(fds) == len(Descriptors._fields):
                return _decode_hello(body), Descriptors(*fds)
            if tag == _LARGE_HELLO and len(fds) == 1 + len(Descriptors._fields):
                hello = _decode_hello(_read(fds[0]))
                os.close(fds[0])
                return hello, Descriptors(*fds[1:])
            frame = _decode_from_child(_content(tag, body, fds))
        except (FrameError, msgspec.MsgspecError, ValueError, OSError) as error:
            _close(fds)
            raise FrameError(str(error)) from error
        along = fds[1:] if tag == _LARGE else fds
        _close(fds[: len(fds) - len(along)])
        if along and not isinstance(frame, Finished):
            _close(along)
            along = ()
        return frame, along


def _content(tag: bytes, body: memoryview, fds: tuple[int, ...]) -> memoryview | bytes:
    if tag == _FRAME and len(fds) <= 1:
        return body
    if tag != _LARGE or not 1 <= len(fds) <= 2:
        raise FrameError(f"unknown tag {tag!r} with {len(fds)} descriptors")
    return _read(fds[0])


def _read(fd: int) -> bytes:
    """All of a frame that came in a file."""
    size = os.fstat(fd).st_size
    chunks, offset = [], 0
    while offset < size:
        chunk = os.pread(fd, min(size - offset, 1 << 24), offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return tuple(fds)


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
