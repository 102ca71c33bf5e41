"""A small application for tests of the command line."""

from __future__ import annotations

from tasuki_mp import Tasuki

app = Tasuki()


@app.handler(queue="images", priority=1, max_attempts=7)
def thumbnail(path: str, width: int = 200) -> str:
    print(f"making {path}")
    return f"{path}@{width}"


@app.handler(max_attempts=1)
def break_down(reason: str) -> None:
    raise ValueError(reason)


@app.handler
def scale(by: float) -> float:
    return by
