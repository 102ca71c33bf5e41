"""The application of `scripts.show preload`: its jobs look things up in a table of 200 MB that the import builds."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Final

import numpy as np

from tasuki_mp import Context, Tasuki

KIND: Final = "TABLE_KIND"
ENTRIES: Final = 580_000


def _table() -> Callable[[int], int]:
    """What finds an entry. Of plain objects: whoever looks at one writes its reference count, and so copies its page."""
    if os.environ.get(KIND) == "array":
        array = np.arange(25_000_000)
        return lambda number: int(array[number * 43])
    objects = {number: (f"name of entry {number}", [number, number + 1]) for number in range(ENTRIES)}
    return lambda number: len(objects[number][0])


FIND: Final = _table()

app = Tasuki()


@app.handler(max_attempts=1)
def look_up(count: int, ctx: Context) -> int:
    """Read entries, each time others."""
    chance = random.Random(ctx.job_id)
    return sum(FIND(chance.randrange(ENTRIES)) for _ in range(count))
