"""The state file: what its reader finds is always whole, and the newest of that job that is."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator

import pytest

from tasuki_mp import Context
from tasuki_mp.child.board import Board
from tasuki_mp.errors import CheckpointError
from tasuki_mp.statefile import CHECKPOINT_LIMIT, NOTE_LIMIT, Progress, StateFile, StateReader

ONE, TWO = (1, 1), (2, 7)
Pair = tuple[StateFile, StateReader]


@pytest.fixture
def pair() -> Iterator[Pair]:
    file = StateFile()
    reader = StateReader(os.dup(file.fd), os.dup(file.bell))
    yield file, reader
    reader.close()
    os.close(file.fd)
    os.close(file.bell)


def test_the_last_word_counts_and_only_that_of_the_same_lease(pair: Pair) -> None:
    file, reader = pair
    assert (reader.progress(ONE), reader.checkpoint(ONE), reader.checkpoint_version(ONE)) == (None, None, 0)
    for number in range(5):
        file.write_progress(ONE, number / 10, f"{number}".encode())
        version = file.write_checkpoint(ONE, f"{number}".encode())
    assert reader.progress(ONE) == Progress(version - 1, 0.4, "4")
    assert reader.checkpoint(ONE) == (version, "4")
    assert (reader.progress(TWO), reader.checkpoint(TWO)) == (None, None)
    file.write_progress(TWO, None, b"")
    assert reader.progress(TWO) == Progress(version + 1, None, "")
    assert reader.progress((1, 2)) is None


def test_a_write_that_was_cut_off_leaves_the_one_before(pair: Pair) -> None:
    file, reader = pair
    file.write_checkpoint(ONE, b"[1]")
    file.write_progress(ONE, 0.1, b"first")
    file.write_checkpoint(ONE, b"[22]")
    file.write_progress(ONE, 0.2, b"second")
    where = os.pread(file.fd, 4096, 0)
    for torn in (b"first", b"second"):
        os.pwrite(file.fd, b"x", where.index(torn))
        left = reader.progress(ONE)
        assert left is None or left.note == "second"
    os.pwrite(file.fd, b"x", 4096 + CHECKPOINT_LIMIT)
    checkpoint = reader.checkpoint(ONE)
    assert checkpoint is not None and checkpoint[1] == "[1]"


def test_a_writer_that_is_killed_at_any_moment_leaves_something_whole(pair: Pair) -> None:
    file, reader = pair
    for _ in range(10):
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            number = 0
            while True:
                file.write_checkpoint(ONE, b"[" + b",".join([b"%d" % number] * random.randrange(1, 30_000)) + b"]")
                os.write(there, b".")
                number += 1
        while len(os.read(here, 1)) < 1:
            pass
        os.read(here, random.randrange(1, 200))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(here)
        os.close(there)
        checkpoint = reader.checkpoint(ONE)
        assert checkpoint is not None
        assert len(set(checkpoint[1].strip("[]").split(","))) == 1, "all of it is of one write"


def test_what_is_read_beside_a_busy_writer_is_whole(pair: Pair) -> None:
    file, reader = pair
    is_over = threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            file.write_checkpoint(ONE, b"%d " % number * 20_000)
            file.write_progress(ONE, 0.5, b"%d " % number * 100)

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    try:
        while seen < 200:
            found, said = reader.checkpoint(ONE), reader.progress(ONE)
            assert said is None or len(set(said.note.split())) == 1
            if found is not None:
                seen += 1
                assert len(set(found[1].split())) == 1
    finally:
        is_over.set()
        writer.join()


def test_the_reply_wakes_whoever_waits_for_that_or_less(pair: Pair) -> None:
    file, reader = pair
    versions = [file.write_checkpoint(ONE, b"1"), file.write_checkpoint(ONE, b"2")]
    answered: list[bool] = []
    waiting = [
        threading.Thread(target=lambda v=version: answered.append(file.wait_for_reply(v).is_refused))
        for version in versions
    ]
    for thread in waiting:
        thread.start()
    reader.answer(versions[0])
    reader.answer(versions[1], is_refused=True)
    for thread in waiting:
        thread.join(45)
    assert len(answered) == 2 and answered[-1]
    reader.close()
    reader.answer(99)  # the child is gone: nothing happens, to no other file
    assert file.reply().version == versions[1]


# ── the board above it ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(lambda _packet: None)
    yield board
    os.close(board.file.fd)
    os.close(board.file.bell)


def test_what_cannot_be_kept_is_refused_with_its_place(board: Board) -> None:
    for state, words in (({"a": [float("nan")]}, r"\$\.a\[0\]"), ("x" * CHECKPOINT_LIMIT, "the limit is 1,048,576")):
        with pytest.raises(CheckpointError, match=words):
            board.checkpoint(ONE, state, wait=False)
    for fraction in (-0.1, 40, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            board.progress(ONE, fraction, "")
    board.progress(ONE, sum([0.1] * 10) + 1e-9, "ä" * NOTE_LIMIT + "\0\ud800")
    assert board.take(ONE) is None


def test_progress_may_have_no_words(board: Board) -> None:
    ctx = Context(job_id=ONE[0], lease_no=ONE[1], handler="h", queue="q", attempt=1, max_attempts=1, board=board)
    reader = StateReader(os.dup(board.file.fd), os.dup(board.file.bell))
    ctx.progress(0.5, "half")
    ctx.progress(0.6, None)
    seen = reader.progress(ONE)
    assert seen is not None
    assert (seen.fraction, seen.note) == (0.6, "")
    reader.close()


def test_the_outcome_carries_what_is_not_on_record_yet(board: Board) -> None:
    reader = StateReader(os.dup(board.file.fd), os.dup(board.file.bell))
    board.checkpoint(ONE, {"a": 1}, wait=False)
    assert board.take(TWO) is None, "another job's"
    board.checkpoint(ONE, {"a": 1}, wait=False)
    assert board.take(ONE) == '{"a":1}'
    assert board.take(ONE) is None
    board.checkpoint(ONE, {"a": 2}, wait=False)
    reader.answer(reader.checkpoint_version(ONE))
    assert board.take(ONE) == ""
    reader.close()


def test_a_forked_process_of_the_job_does_not_speak_for_it(board: Board) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            board.progress(ONE, 0.5, "")
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
