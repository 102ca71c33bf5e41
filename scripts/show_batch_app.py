"""The application of `scripts.show batch`: jobs that do nothing, and one that follows them."""

from __future__ import annotations

from tasuki_mp import Tasuki

app = Tasuki()


@app.handler
def part(number: int) -> None:
    """One of very many."""


@app.handler(queue="after")
def follow(which: str) -> None:
    """What a batch fires at its end."""
