"""The examples do what their first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psycopg
import pytest

from tasuki_mp import Retry

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("tag")


def run(*arguments: object) -> str:
    """What `python ARGUMENTS` printed, once it has ended well."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def supervise(app: str, dsn: str) -> str:
    return run("-m", "tasuki_mp", "run", "--dsn", dsn, "--app-dir", EXAMPLES, "--app", app, "--drain")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["counter", "mandelbrot", "web_transaction"])
@pytest.mark.parametrize("dsn", ["postgresql://127.0.0.1:1/nobody", "nonsense", ""])
def test_without_a_database_each_says_so_and_no_more(name: str, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASUKI_DSN", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--dsn", dsn]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_counter_is_enqueued_and_counted(dsn: str, conn: psycopg.Connection[Any]) -> None:
    printed = run(EXAMPLES / "counter.py", "--dsn", dsn, "--count", 1)
    assert "enqueued 1 as job 1" in printed
    assert "job 1 | 1: attempt 1, working for 2 s" in supervise("counter:app", dsn)
    assert conn.execute("SELECT status, result FROM tasuki.job_archive").fetchall() == [("completed", "counted 1")]


def test_every_third_count_asks_for_a_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = load("counter")
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    first = asyncio.run(counter.count(3, ctx=SimpleNamespace(attempt=1)))
    second = asyncio.run(counter.count(3, ctx=SimpleNamespace(attempt=2)))
    assert isinstance(first, Retry)
    assert second == "counted 3"
    assert waits == [4, 4]


def test_order_and_job_exist_together_or_not_at_all(dsn: str, conn: psycopg.Connection[Any]) -> None:
    printed = run(EXAMPLES / "web_transaction.py", "--dsn", dsn)
    assert "order 1: committed\norder 1: 1 in the table, 1 in the queue\n" in printed
    assert (
        "order 2: rolled back, the payment for order 2 is refused\norder 2: 0 in the table, 0 in the queue\n" in printed
    )
    assert "dear Ann, thank you for order 1" in supervise("web_transaction:app", dsn)
    assert conn.execute("SELECT payload ->> 'customer', status FROM tasuki.job_archive").fetchall() == [
        ("Ann", "completed")
    ]


def test_picture_is_put_together_from_its_tiles(dsn: str, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    size = ("--width", 121, "--height", 80, "--tile", 40)
    assert "enqueued 8 tiles" in run(EXAMPLES / "mandelbrot.py", "--dsn", dsn, *size, "--out", out)

    rows = read_png(out.read_bytes())
    assert [len(row) for row in rows] == [121] * 80
    view = load("mandelbrot")
    [whole] = [view.tile(view.View(121, 80, step=3.2 / 121), 0, 0, 121, 80)]
    assert b"".join(rows) == whole.points
    assert rows[40][60] == view.INSIDE
    assert rows[0][0] != view.INSIDE


def read_png(data: bytes) -> list[bytes]:
    """The rows of a PNG with one byte a point, whose chunks are checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        [size] = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        [checksum] = struct.unpack_from(">I", data, at + 8 + size)
        assert zlib.crc32(kind + body) == checksum
        chunks[kind] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert len(chunks[b"PLTE"]) == 256 * 3
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    pixels = zlib.decompress(chunks[b"IDAT"])
    assert len(pixels) == (width + 1) * height
    return [pixels[y * (width + 1) + 1 : (y + 1) * (width + 1)] for y in range(height)]
