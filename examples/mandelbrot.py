"""The Mandelbrot set: every tile of the picture is a job, and their results are put together to a PNG.

    python examples/mandelbrot.py --dsn embedded

enqueues the tiles, has a supervisor run them on all cores until none is left, reads the results from the archive and
writes `mandelbrot.png`. `--dsn embedded` is a PostgreSQL of tasuki-mp's own; leave it out when TASUKI_DSN names yours.
"""

import argparse
import math
import os
import struct
import subprocess
import sys
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psycopg

from tasuki_mp import Job, Tasuki, TasukiError, embedded, migrate

app = Tasuki()

QUEUE = "mandelbrot"
INSIDE = 0  # the palette's index for points that never escape


@dataclass(frozen=True)
class View:
    """A picture of `width` × `height` points around `centre`, each `step` wide."""

    width: int
    height: int
    centre: tuple[float, float] = (-0.74, 0.0)
    step: float = 3.2 / 720
    limit: int = 300


@dataclass(frozen=True)
class Tile:
    """A piece of the picture: palette indexes row by row, one byte each (base64 in the database)."""

    left: int
    top: int
    width: int
    points: bytes


@app.handler(queue=QUEUE)
def tile(view: View, left: int, top: int, width: int, height: int) -> Tile:
    """Compute one piece of the picture, in nothing but Python."""
    points = bytearray()
    for y in range(top, top + height):
        for x in range(left, left + width):
            point = complex(
                view.centre[0] + (x - view.width / 2) * view.step, view.centre[1] - (y - view.height / 2) * view.step
            )
            points.append(colour(point, view.limit))
    return Tile(left, top, width, bytes(points))


def colour(point: complex, limit: int) -> int:
    """The palette's index for a point: how soon it escapes, made smooth."""
    z = 0j
    for step in range(limit):
        z = z * z + point
        if abs(z) > 16:
            smooth = step + 1 - math.log2(math.log2(abs(z)))
            return 1 + int(40 * math.log(1 + smooth / 4)) % 255
    return INSIDE


def tiles(view: View, size: int) -> list[Job]:
    return [
        tile.job(view, left, top, min(size, view.width - left), min(size, view.height - top))
        for top in range(0, view.height, size)
        for left in range(0, view.width, size)
    ]


def assemble(view: View, done: list[Tile]) -> list[bytearray]:
    """The picture's rows."""
    rows = [bytearray(view.width) for _ in range(view.height)]
    for piece in done:
        for y in range(len(piece.points) // piece.width):
            row = piece.points[y * piece.width : (y + 1) * piece.width]
            rows[piece.top + y][piece.left : piece.left + piece.width] = row
    return rows


def png(rows: list[bytearray]) -> bytes:
    """The rows as a PNG with a palette (https://www.w3.org/TR/png-3/)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    palette = bytes([0, 0, 0])  # INSIDE
    for index in range(1, 256):
        turn = 2 * math.pi * index / 255
        palette += bytes(int(127.5 * (1 - math.cos(turn + shift))) for shift in (0.3, 0.9, 1.8))
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    chunks = [chunk(b"IHDR", header), chunk(b"PLTE", palette), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default=os.environ.get("TASUKI_DSN"), help="which database; else TASUKI_DSN says")
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--tile", type=int, default=60, help="points along a tile's edge")
    parser.add_argument("--out", type=Path, default=Path("mandelbrot.png"))
    options = parser.parse_args()
    dsn = options.dsn or parser.error("which database? Set TASUKI_DSN, or give --dsn embedded")
    view = View(options.width, options.height, step=3.2 / options.width)

    with ExitStack() as stack:
        if dsn == "embedded":
            dsn = stack.enter_context(embedded.open_embedded()).dsn
        migrate.migrate(dsn)
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        ids = list(app.enqueue_many(tiles(view, options.tile), conn=conn))
        print(f"enqueued {len(ids)} tiles", flush=True)

        here = Path(__file__).resolve()
        work = ["run", "--app", f"{here.stem}:app", "--app-dir", here.parent, "--queue", QUEUE, "--drain"]
        command = [sys.executable, "-m", "tasuki_mp", *work]
        supervisor = subprocess.run(command, env={**os.environ, "TASUKI_DSN": dsn}, check=False)
        if supervisor.returncode != 0:
            sys.exit(supervisor.returncode)

        results = conn.execute(
            "SELECT result::text FROM tasuki.job_archive WHERE status = 'completed' AND id = ANY(%s)", (ids,)
        ).fetchall()
    done = [msgspec.json.decode(result, type=Tile) for (result,) in results]
    if len(done) < len(ids):
        sys.exit(f"only {len(done)} of {len(ids)} tiles are done; `tasuki-mp status` may say why")
    options.out.write_bytes(png(assemble(view, done)))
    print(f"{options.out} is written")


if __name__ == "__main__":
    try:
        main()
    except TasukiError as error:
        sys.exit(str(error))
