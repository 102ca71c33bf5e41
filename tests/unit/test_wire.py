"""Frames between supervisor and child: over real socket pairs, small and large, whole and broken."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from tasuki_mp import wire
from tasuki_mp.outcome import Returned

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        yield here, there


def job(payload: str) -> wire.RunJob:
    return wire.RunJob(7, 3, "thumbnail", "images", 1, 5, payload)


def finished(result: str) -> wire.Finished:
    return wire.Finished(7, 3, Returned(result), 10, 20, wire.Used(5, 1, 4096), 0)


@pytest.mark.parametrize("size", [0, 1000, wire.INLINE_LIMIT - 64, wire.INLINE_LIMIT, wire.INLINE_LIMIT * 20])
def test_frames_of_every_size_arrive_as_they_were(pair: Pair, size: int) -> None:
    here, there = pair
    wire.send_job(here, wire.pack(job("x" * size)))
    assert wire.Receiver(there).to_child() == job("x" * size)
    wire.send_outcome(there, wire.pack(finished("y" * size)))
    assert wire.Receiver(here).from_child() == (finished("y" * size), ())


def test_large_frames_leave_no_descriptor_open(pair: Pair) -> None:
    here, there = pair
    receiver = wire.Receiver(there)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        wire.send_job(here, wire.pack(job("x" * 300_000)))
        receiver.to_child()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_waiting_frame_goes_to_exactly_one_of_two_receivers(pair: Pair) -> None:
    here, there = pair
    wire.send_job(here, wire.pack(job("{}")))
    with socket.socket(fileno=os.dup(there.fileno())) as other:
        assert wire.Receiver(other).to_child(socket.MSG_DONTWAIT) == job("{}")
        with pytest.raises(BlockingIOError):
            wire.Receiver(there).to_child(socket.MSG_DONTWAIT)


@pytest.mark.parametrize("count", [1, 400, 5000])
def test_a_hello_of_any_number_of_handlers_brings_its_descriptors(pair: Pair, count: int) -> None:
    here, there = pair
    before = len(os.listdir("/proc/self/fd"))
    null = os.open(os.devnull, os.O_RDONLY)
    handlers = [wire.HandlerInfo(name=f"handler {number}") for number in range(count)]
    hello = wire.Hello(pid=1, forkserver_pid=2, handlers=handlers)
    wire.send_hello(here, hello, wire.Descriptors(null, null, null, null, null))
    os.close(null)
    received, fds = wire.Receiver(there).from_child()
    assert received == hello
    assert len(os.listdir("/proc/self/fd")) == before + 5
    assert len(fds) == 5
    for fd in fds:
        assert os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev
        os.close(fd)


def test_descriptors_may_come_later_than_their_announcement(pair: Pair) -> None:
    here, there = pair
    there.setblocking(False)
    receiver = wire.Receiver(there)
    here.send(b"D")
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            receiver.from_child()
    null = os.open(os.devnull, os.O_RDONLY)
    wire.send_fds(here, wire.pack(finished("with a spool")), (null,))
    frame, fds = receiver.from_child()
    assert (frame, len(fds)) == (finished("with a spool"), 1)
    here.send(b"D")
    wire.send_outcome(here, wire.pack(wire.Keep(7, 3, 1)))  # by another thread of the child
    assert receiver.from_child() == (wire.Keep(7, 3, 1), ())
    wire.send_fds(here, wire.pack(finished("with another")), (null,))
    frame, more = receiver.from_child()
    assert (frame, len(more)) == (finished("with another"), 1)
    wire.send_outcome(here, wire.pack(finished("without")))
    assert receiver.from_child() == (finished("without"), ())
    here.send(b"D")
    here.close()
    with pytest.raises(wire.ClosedError):
        receiver.from_child()
    for fd in (null, *fds, *more):
        os.close(fd)


def test_an_outcome_whose_spool_can_not_be_received_is_no_outcome(pair: Pair) -> None:
    here, there = pair
    with open(os.devnull, "rb") as null:
        wire.send_outcome(here, wire.pack(finished("with a spool")), spool=null.fileno())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(wire.FrameError, match="could not be received"):
            wire.Receiver(there).from_child()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("packet", [b"F", b"F\xc1", b"Fnonsense", b"X123", b"L", b"H\x80", b"B", wire.pack(job("{}"))])
def test_what_is_no_outcome_frame_is_refused(pair: Pair, packet: bytes) -> None:
    here, there = pair
    here.send(packet)
    with pytest.raises(wire.FrameError):
        wire.Receiver(there).from_child()


@pytest.mark.parametrize("announcement", [b"", b"D"])
@pytest.mark.parametrize(("tag", "count"), [(b"L", 3), (b"H", 5), (b"B", 6), (b"B", 1)])
def test_descriptors_that_come_with_nonsense_are_closed(
    pair: Pair, announcement: bytes, tag: bytes, count: int
) -> None:
    here, there = pair
    before = len(os.listdir("/proc/self/fd"))
    null = os.open(os.devnull, os.O_RDONLY)
    if announcement:
        here.send(announcement)
    wire.send_fds(here, tag, (null,) * count)
    os.close(null)
    with pytest.raises(wire.FrameError):
        wire.Receiver(there).from_child()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_other_end_is_told(pair: Pair) -> None:
    here, there = pair
    here.close()
    with pytest.raises(wire.ClosedError):
        wire.Receiver(there).to_child()
