"""Ten thousand requests to stop a job at about the moment when it ends by itself: none ever hits another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.waiting import TIMEOUT


@pytest.mark.parametrize(("how", "count"), [("asks", 8500), ("kills", 1500)])
def test_a_cancel_that_races_with_the_end_hits_its_own_job_or_nobody(how: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.support.races", "--asks", "0", "--kills", "0", f"--{how}", str(count)]
    # Measured for coverage it takes ten times as long, and shows nothing that other tests don't.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT, env=env)

    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["jobs"] == 2 * count
    # Both happened: else it was no race.
    assert set(found[how]) == {"stopped", "ended by itself"}
    assert ended.returncode == 0, ended.stderr
