"""The child's parts that need no child: errors described, leaks noticed, output read beside its writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tasuki_mp.child.describe import MESSAGE_LIMIT, TRACEBACK_LIMIT, clip, describe, storable
from tasuki_mp.child.tidy import FEW, Leak, has_children
from tasuki_mp.errors import PayloadError, ResultError
from tasuki_mp.job import Lease
from tasuki_mp.outcome import ErrorInfo, ErrorKind
from tasuki_mp.supervisor.echo import READ_AT_ONCE, STORED, Echo, Piece, users_part


class TwoArgumentsError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one, two)


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def looped() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def described(error: BaseException) -> ErrorInfo:
    """The error as it is described after it was raised."""

    def fails() -> None:
        raise error

    try:
        fails()
    except BaseException as raised:  # noqa: BLE001  the oddest ones are what this is about
        return describe(raised)
    raise AssertionError


ODD = [
    TwoArgumentsError("a", "b"),
    BrokenTextError(),
    ValueError("x" * 10_000_000),
    looped(),
    ExceptionGroup("many", [ValueError(str(number)) for number in range(100)]),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    ValueError("nul \x00 and surrogate \ud800"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    BaseException(),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_any_exception_becomes_bounded_text_that_can_be_stored(error: BaseException) -> None:
    info = described(error)
    assert info.kind is ErrorKind.ERROR
    assert type(error).__name__ in info.type
    assert len(info.message) <= MESSAGE_LIMIT
    assert len(info.traceback) <= TRACEBACK_LIMIT
    for text in (info.type, info.message, info.traceback):
        assert "\x00" not in text
        text.encode()


def test_the_error_says_whose_fault_it_was() -> None:
    assert describe(PayloadError("h", "$.a", "missing")).kind is ErrorKind.BAD_PAYLOAD
    too_large = described(ResultError("ResultTooLarge", "2 MiB"))
    assert (too_large.kind, too_large.type) == (ErrorKind.BAD_RESULT, "ResultTooLarge")
    assert (too_large.message, too_large.traceback) == ("2 MiB", ""), "none of the handler's code is in it"


def test_the_traceback_holds_no_local_variables() -> None:
    def fails(secret: str) -> None:
        raise ValueError(len(secret))

    with pytest.raises(ValueError, match="7") as caught:
        fails("".join(["hun", "ter2"]))  # noqa: FLY002  the source line is shown, and must not hold it
    assert "in fails" in describe(caught.value).traceback
    assert "hunter2" not in describe(caught.value).traceback


def test_clipping_keeps_both_ends_and_counts_what_is_gone() -> None:
    clipped = clip("a" * 500 + "z" * 500, 100)
    assert len(clipped) == 100
    assert clipped.startswith("a")
    assert clipped.endswith("z")
    assert "900 characters left out" in clipped


def test_storable_text_shows_what_was_replaced() -> None:
    assert storable("a\x00b\ud800") == "a\\u0000b\\ud800"


# ── leaks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_steady_count_is_no_leak() -> None:
    leak = Leak("threads")
    assert not any(leak.look(count) for count in (5, 7, 6, 7, 6, 5, 7, 6))


def test_a_big_jump_is_a_leak_at_once() -> None:
    leak = Leak("threads")
    leak.look(5)
    assert leak.look(5 + FEW) == ""
    assert leak.look(5 + FEW + 1) == f"leaked {FEW + 1} threads"


def test_growth_probe_after_probe_is_a_leak_however_small() -> None:
    leak = Leak("threads")
    assert [bool(leak.look(count)) for count in (5, 6, 7, 8)] == [False, False, False, True]


def test_what_a_first_run_opens_is_no_leak_up_to_a_limit() -> None:
    leak = Leak("threads")
    leak.begin(5, room=32)
    assert [leak.look(37), leak.look(37), leak.look(37 + FEW)] == ["", "", ""]
    assert leak.look(37 + FEW + 1) == f"leaked {FEW + 1} threads"
    leak = Leak("threads")
    leak.begin(5, room=32)
    assert leak.look(38) == "leaked 33 threads"
    assert leak.look(38) == "leaked 33 threads", "it is no baseline"


def test_a_handlers_first_run_forgives_no_earlier_leak() -> None:
    leak = Leak("threads")
    leak.look(5)
    assert leak.look(5 + FEW) == ""
    leak.begin(5 + FEW, room=32)
    assert leak.look(5 + FEW + 10) == ""
    assert leak.look(5 + FEW + 11) == f"leaked {FEW + 1} threads"


def test_a_resource_may_keep_what_it_opens_also_in_a_first_run() -> None:
    leak = Leak("file descriptors")
    leak.begin(5, room=64)
    leak.keep(1000)
    assert leak.look(5 + 1000 + 64) == ""
    leak.keep(500)
    assert leak.look(5 + 1500 + 64 + FEW) == ""
    assert leak.look(5 + 1500 + 64 + FEW + 1) == f"leaked {FEW + 1} file descriptors"


def test_this_process_knows_whether_it_has_children() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not has_children() else 1)
    assert has_children()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ── output ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Shown = list[tuple[int | None, str]]


@pytest.fixture
def output() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def job(id: int) -> Lease:
    return Lease(id, 1, "q", "h", 2, 1, 5, 0, "{}", datetime(2026, 1, 1, tzinfo=UTC), 0.0)


def echo(fd: int) -> tuple[Echo, Shown]:
    shown: Shown = []
    return Echo(fd, lambda lease, line: shown.append((lease.id if lease else None, line))), shown


def test_lines_belong_to_the_job_that_wrote_them(output: int) -> None:
    reader, shown = echo(output)
    os.write(output, b"one\nunfinished")
    end = os.fstat(output).st_size
    os.write(output, b"two\n")  # the next job is already running
    reader.job_done(job(1), end)
    reader.job_done(job(2), os.fstat(output).st_size)
    assert shown == [(1, "one"), (1, "unfinished"), (2, "two")]


def test_a_running_jobs_whole_lines_are_shown_while_it_runs(output: int) -> None:
    reader, shown = echo(output)
    os.write(output, b"start\nhalf a li")
    reader.peek(job(1))
    assert shown == [(1, "start")]
    os.write(output, b"ne\n")
    reader.peek(job(1))
    assert shown == [(1, "start"), (1, "half a line")]


def test_endless_output_is_cut_in_the_middle_and_counted_and_its_memory_given_back(output: int) -> None:
    reader, shown = echo(output)
    line = b"x" * 1023 + b"\n"
    for _ in range(8 * 1024):
        os.write(output, line)
    reader.peek(job(1))
    assert len(shown) < 2 * READ_AT_ONCE / 1024
    assert any(f"[{8 * 1024 * 1024 - READ_AT_ONCE} bytes of output dropped]" in text for _, text in shown)
    assert os.fstat(output).st_blocks * 512 < 1024 * 1024


def test_a_flood_is_let_go_unread_but_for_its_end_and_counted(output: int) -> None:
    reader, shown = echo(output)
    os.write(output, b"first\n")
    reader.peek(job(1))
    assert not reader.shed()
    line = b"x" * 1023 + b"\n"
    for _ in range(2):
        for _ in range(8 * 1024):
            os.write(output, line)
        assert reader.shed()
        assert os.fstat(output).st_blocks * 512 < 1024 * 1024
    os.write(output, b"last\n")
    stored = reader.job_done(job(1), os.fstat(output).st_size)
    assert shown[:2] == [(1, "first"), (1, f"[{16 * 1024 * 1024 - READ_AT_ONCE} bytes of output dropped]")]
    assert sum(1 for _, text in shown if "dropped" in text) == 2, "what came after it is more than is shown at once too"
    assert shown[-1] == (1, "last")
    assert stored.endswith("x\nlast\n")
    assert "\0" not in stored


def test_bytes_that_are_no_text_and_lines_without_end_are_shown_in_pieces(output: int) -> None:
    reader, shown = echo(output)
    os.write(output, b"\xff\xfe\n" + b"y" * 20_000)
    reader.job_done(job(1), os.fstat(output).st_size)
    assert shown[0] == (1, "\\xff\\xfe")
    assert "".join(text for _, text in shown[1:]) == "y" * 20_000


def test_the_stack_of_a_crash_is_found_in_what_came_last(output: int) -> None:
    reader, _ = echo(output)
    os.write(output, b"hello\nFatal Python error: Segmentation fault\n\nCurrent thread\n  File x\n")
    assert reader.crash_report().startswith("Fatal Python error: Segmentation fault")
    reader.peek(job(1))
    assert reader.crash_report().startswith("Fatal Python error"), "a look before the end of the process is no reason"
    reader.job_done(job(1), os.fstat(output).st_size)
    os.write(output, b"the next job\n")
    assert reader.crash_report() == ""


def test_what_is_stored_of_a_jobs_output_is_its_end_from_a_whole_line_on(output: int) -> None:
    reader, _ = echo(output)
    assert reader.job_done(job(1), 0) == ""
    os.write(output, b"all of it \xff\x00\n")
    assert reader.job_done(job(2), os.fstat(output).st_size) == "all of it \\xff\\u0000\n"
    line = "ä".encode() * 500 + b"\n"
    for _ in range(5000):
        os.write(output, line)
        reader.peek(job(3))
    note, _, rest = reader.job_done(job(3), os.fstat(output).st_size).partition("\n")
    assert set(rest.splitlines()) == {"ä" * 500}
    assert note == f"[{len(line) * 5000 - len(rest.encode())} bytes of output left out]"
    assert STORED - len(line) <= len(rest.encode()) <= STORED


def test_output_can_be_asked_for_piece_by_piece_and_no_character_is_cut(output: int) -> None:
    reader, _ = echo(output)
    os.write(output, b"before\n")
    reader.job_done(job(1), os.fstat(output).st_size)
    os.write(output, "1 €".encode()[:-1])
    assert reader.piece(0) == Piece(0, 2, "1 ")
    os.write(output, "€".encode()[-1:] + b"\xff\n")
    assert reader.piece(2) == Piece(2, 7, "€\\xff\n")
    assert reader.piece(7) == Piece(7, 7, "")
    os.write(output, b"x" * 2 * STORED)
    assert reader.piece(7) == Piece(7 + STORED, 7 + 2 * STORED, "x" * STORED)


def test_what_a_child_wrote_before_it_was_ready_is_no_jobs(output: int) -> None:
    os.write(output, b"eager\n")
    reader, shown = echo(output)
    os.write(output, b"mine\n")
    assert reader.job_done(job(1), os.fstat(output).st_size) == "mine\n"
    assert shown == [(None, "eager"), (1, "mine")]


def test_the_report_of_a_crash_is_that_of_the_users_frames() -> None:
    report = (
        "Fatal Python error: Aborted\n\n"
        "Thread 0x1 (most recent call first):\n"
        '  File "/usr/lib/python3/threading.py", line 1 in wait\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  File "/app/jobs.py", line 7 in deep\n'
        '  File "/app/jobs.py", line 3 in handler\n'
        '  File "/lib/tasuki_mp/child/main.py", line 2 in _call\n'
        '  File "/usr/lib/python3/multiprocessing/spawn.py", line 1 in main\n\n'
        "Extension modules: x\n"
    )
    kept = [line for line in report.splitlines(keepends=True) if "_call" not in line and "in main" not in line]
    assert users_part(report) == "".join(kept)
    ours = (
        'Current thread:\n  File "/lib/tasuki_mp/child/main.py", line 2 in serve\n  File "/lib/x.py", line 1 in main\n'
    )
    assert users_part(ours) == ours, "between two jobs there is nothing else"
