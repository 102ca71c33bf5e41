"""The application of `scripts.pictures`: some jobs that take a while and say how far they are, and many short ones."""

from __future__ import annotations

import time
from typing import Any, Final

from tasuki_mp import Context, Tasuki

app = Tasuki()
_FRAME: Final = 0.04
"""Seconds of CPU time for one."""


def _work(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


@app.handler(queue="films")
def render(scene: str, frames: int, ctx: Context) -> str:
    """Frame after frame, which are kept in memory."""
    film: list[Any] = []
    for n in range(frames):
        if ctx.should_stop:
            break
        _work(_FRAME)
        film.append(bytearray(1 << 18))
        ctx.progress(n / frames, f"frame {n} of {frames}")
    return scene


@app.handler(queue="models", cpus=2)
def train(epochs: int, ctx: Context) -> int:
    """A job of two units."""
    for epoch in range(epochs):
        if ctx.should_stop:
            break
        _work(10 * _FRAME)
        ctx.progress(epoch / epochs, f"epoch {epoch}, loss {1 / (epoch + 1):.3f}")
    return epochs


@app.handler(queue="images", timeout=60)
def thumbnail(path: str) -> str:
    """A short one."""
    _work(_FRAME)
    return path


@app.handler(queue="mail")
def remind(user: int) -> int:
    """One for later."""
    return user
