"""An application with native thread pools: `tests.support.native:app`."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import numexpr
import numpy as np
from threadpoolctl import threadpool_info

from tasuki_mp import Context, Tasuki

app = Tasuki()


def _seen(ctx: Context) -> dict[str, Any]:
    square = np.ones((64, 64))
    assert (square @ square)[0, 0] == 64
    return {
        "pid": os.getpid(),
        "cpus": ctx.cpus,
        "pools": sorted({pool["num_threads"] for pool in threadpool_info()}),
        "numexpr": numexpr.get_num_threads(),
        "environment": sorted({os.environ[name] for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}),
        "polars": os.environ["POLARS_MAX_THREADS"],
    }


@app.handler
def look(ctx: Context) -> dict[str, Any]:
    """How many threads may be used."""
    return _seen(ctx)


@app.handler(cpus=2)
def look_wide(ctx: Context) -> dict[str, Any]:
    """The same with two units of its own."""
    return _seen(ctx)


@app.handler
def stand(ctx: Context) -> dict[str, Any]:
    """The same, having imported (something of the name of) a library that reads its number of threads once."""
    sys.modules.setdefault("polars", types.ModuleType("polars"))
    return _seen(ctx)


@app.handler(max_attempts=1, cpus=2)
def fail(ctx: Context) -> None:
    """Fail with two threads."""
    assert _seen(ctx)["pools"] == [2]
    raise ValueError("as told")
