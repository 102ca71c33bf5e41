"""The application of `scripts.show threads`: matrices multiplied by whatever BLAS numpy has."""

from __future__ import annotations

import time

import numpy as np

from tasuki_mp import Context, Tasuki

app = Tasuki()
SIZE = 1000


@app.handler(max_attempts=1)
def multiply(times: int, ctx: Context) -> dict[str, float]:
    """Multiply matrices; how long that took, and how much CPU time of this process."""
    matrix = np.random.default_rng(ctx.job_id).random((SIZE, SIZE))
    began, used = time.perf_counter(), time.process_time()
    for _ in range(times):
        matrix = matrix @ matrix
        matrix /= matrix.max()
    return {"wall": time.perf_counter() - began, "cpu": time.process_time() - used, "cpus": ctx.cpus}
