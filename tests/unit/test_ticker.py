"""How often the supervisor looks at what runs."""

from __future__ import annotations

import pytest

from tasuki_mp.supervisor.ticker import FLOOD_TICK, LEISURELY_TICK, QUICK_TICK, pulse


@pytest.mark.parametrize(
    ("job_seconds", "seconds"),
    [
        (0.0, QUICK_TICK),
        (0.001, QUICK_TICK),
        (0.05, QUICK_TICK),
        (0.08, 0.04),
        (0.1, LEISURELY_TICK),
        (3600.0, LEISURELY_TICK),
    ],
)
def test_long_jobs_are_looked_at_half_as_often_as_short_ones(job_seconds: float, seconds: float) -> None:
    assert pulse(job_seconds, is_flooded=False) == seconds


@pytest.mark.parametrize("job_seconds", [0.0, 0.001, 3600.0])
def test_a_flood_of_output_is_looked_at_more_often_whatever_runs(job_seconds: float) -> None:
    assert pulse(job_seconds, is_flooded=True) == FLOOD_TICK
