"""The application whose jobs the tests of enqueueing insert."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from tasuki_mp import Tasuki

app = Tasuki()


@app.handler(queue="images", priority=1, max_attempts=7)
def thumbnail(path: Path, width: int = 200) -> None: ...


@app.handler
def anything(x: Any = None) -> None: ...


@app.handler
def typed(
    real: float = 0.0, whole: int = 0, text: str = "", raw: bytes = b"", when: dt.datetime | None = None
) -> None: ...
