"""One line per event, whatever is in it; and a reader that is slow or gone stops nobody."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from tasuki_mp import logs
from tasuki_mp.logs import FIELD_LIMIT, JsonFormatter, LineWriter, TextFormatter, escape

HOSTILE = "a\x1b[31mred\x9b1m\nINFO forged\r\x00\x7f\u2028\u202e\ud800é 日本"


def record(message: str = "job failed", *, level: int = logging.WARNING, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("tasuki_mp", level, __file__, 1, message, None, None)
    made.fields = fields
    return made


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    root, ours = logging.getLogger(), logs.log
    before = (list(root.handlers), root.level, ours.level)
    yield
    for handler in [known for known in root.handlers if known not in before[0]]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_text_has_the_fields_in_order_and_quotes_what_needs_it() -> None:
    line = TextFormatter().format(
        record(job=12, handler="thumbnail", error='ValueError: "x"', seconds=1 / 3, none=None)
    )
    assert line.endswith('WARNING job failed  job=12 handler=thumbnail error="ValueError: \\"x\\"" seconds=0.333333')


def test_text_escapes_everything_that_a_terminal_obeys() -> None:
    line = TextFormatter().format(record(HOSTILE, handler=HOSTILE, **{HOSTILE: 1}))
    assert line.isprintable()
    assert r"a\x1b[31mred\x9b1m\nINFO forged\r\x00\x7f\u2028\u202e\ud800é 日本" in line


def test_a_long_value_is_cut_and_says_so() -> None:
    line = TextFormatter().format(record(error="x" * 100_000))
    assert len(line) < FIELD_LIMIT + 200
    assert "(100000 characters)" in line
    assert "(100000 characters)" in json.loads(JsonFormatter().format(record(error="x" * 100_000)))["error"]


def test_json_is_one_ascii_line_with_the_same_fields() -> None:
    line = JsonFormatter().format(
        record(HOSTILE, job=12, seconds=float("nan"), handlers=["a", "b"], text=HOSTILE, event="x")
    )
    assert line.isprintable()
    assert line.isascii()
    content = json.loads(line)
    assert content["job"] == 12
    assert content["seconds"] == "nan"
    assert content["handlers"] == ["a", "b"]
    assert content["text"] == HOSTILE
    assert content["level"] == "warning"
    assert content["event"].startswith("a\\x1b[31m")
    assert content["time"].endswith("Z")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_stays_on_the_line(formatter: logging.Formatter) -> None:
    error = ValueError("two\nlines")
    made = record()
    made.exc_info = (ValueError, error, None)
    line = formatter.format(made)
    assert "\n" not in line
    assert "ValueError: two" in line


def test_escape_keeps_what_it_is_told_to_keep() -> None:
    assert escape("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_set_up_writes_ours_from_the_level_and_others_from_warning() -> None:
    stream = io.StringIO()
    writer = logs.set_up(level="info", stream=stream)
    logs.event(logging.DEBUG, "leased", jobs=3)
    logs.event(logging.INFO, "started", procs=2)
    logging.getLogger("someone.else").info("chatter")
    logging.getLogger("someone.else").warning("trouble")
    assert writer.flush()
    assert [line[24:] for line in stream.getvalue().splitlines()] == ["INFO    started  procs=2", "WARNING trouble"]
    writer.stop()


def test_set_up_twice_writes_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.set_up(stream=first)
    writer = logs.set_up(log_format="json", stream=second)
    logs.event(logging.INFO, "started")
    assert writer.flush()
    assert not first.getvalue()
    assert json.loads(second.getvalue())["event"] == "started"
    writer.stop()


def test_a_value_that_can_not_be_shown_does_no_harm() -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    stream = io.StringIO()
    writer = logs.set_up(stream=stream)
    logs.event(logging.INFO, "started", bad=Bad())
    assert writer.flush()
    assert "started (could not be formatted)" in stream.getvalue()
    writer.stop()


def test_a_reader_that_does_not_read_makes_nobody_wait() -> None:
    reader, writer_end = os.pipe()
    with os.fdopen(writer_end, "w") as stream, os.fdopen(reader) as readable:
        writer = LineWriter(stream, limit=100)
        writer.start()
        for number in range(5_000):  # any ten of them are more than a pipe holds
            writer.write(f"{number:010000}")
        assert not writer.flush(0.05)
        drained: list[str] = []
        thread = threading.Thread(target=lambda: drained.extend(readable), daemon=True)
        thread.start()
        assert writer.flush(10)
        writer.stop()
        stream.close()
        thread.join(10)
    told = [line for line in drained if "lines dropped" in line]
    written = len(drained) - len(told)
    assert 0 < written < 5_000
    assert written + sum(int(line.strip("(").split()[0]) for line in told) == 5_000


def test_a_reader_that_is_gone_is_no_error() -> None:
    reader, writer_end = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer_end, "w")
    writer = LineWriter(stream)
    writer.start()
    writer.write("into the void")
    assert writer.flush(5)
    writer.write("again")
    assert writer.flush(5)
    writer.stop()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_writer_may_be_stopped_before_it_starts_and_twice() -> None:
    writer = LineWriter(io.StringIO())
    writer.stop()
    writer.start()
    writer.stop()
    writer.stop()
