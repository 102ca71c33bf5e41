"""Ten thousand requests to stop a job at about the moment when it ends by itself: none ever hits another one."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.waiting import TIMEOUT


def test_a_cancel_that_races_with_the_end_hits_its_own_job_or_nobody() -> None:
    command = [sys.executable, "-m", "tests.support.races", "--asks", "9700", "--kills", "300"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * TIMEOUT)

    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["jobs"] == 20_000
    # Both happened, of both kinds: else it was no race.
    assert {(how, end) for how in ("asks", "kills") for end in found[how]} == {
        (how, end) for how in ("asks", "kills") for end in ("stopped", "ended by itself")
    }
    assert ended.returncode == 0, ended.stderr
