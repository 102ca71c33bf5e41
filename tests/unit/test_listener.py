"""What the listener makes of notifications: anybody who may connect may send any, on each of its channels."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from tasuki_mp.supervisor import listener as listening
from tasuki_mp.supervisor.listener import Listener

OWNER = UUID("0192f7a3-0000-7000-8000-00000000000a")
CHANNELS = (
    listening.JOB_CHANNEL,
    listening.CANCEL_CHANNEL,
    listening.COMMAND_CHANNEL,
    listening.SCHEDULE_CHANNEL,
    "somebody_else",
)
MALFORMED = [
    "",
    " ",
    "  ",
    "0",
    " 0",
    " ahead",
    "ahead",
    "default",
    "default ",
    "default  ",
    "default -1",
    "default +1",
    "default 1.5",
    "default 1e3",
    "default 1_000",
    "default 0x10",
    "default nan",
    "default inf",
    "default AHEAD",
    "default ahead ",
    "default 0\n",
    "default\t0",
    "default ²",  # a digit for `isdigit`, and no number for `int`
    "default 1²",
    "default ①",
    "default ٣",
    "default ３",
    "default ½",
    "default " + "9" * 12,
    "default " + "9" * 4400,  # more digits than `int` takes
    "x" * 7999,
    "²" * 3999,
    "'; select pg_sleep(10) --",
    "\x01\x7f\u2028\ufeff\U0001f600",
    "{}",
    str(OWNER).upper(),
    OWNER.hex,
    f"{{{OWNER}}}",
    f" {OWNER}",
    f"{OWNER} ",
    f"{OWNER} 0²",
    str(OWNER)[:-1],
    str(OWNER) * 200,
]


class Told:
    """What was passed on."""

    def __init__(self) -> None:
        self.hints: list[tuple[object, ...]] = []

    def jobs_hinted(self, queue: str, look_back: float) -> None:
        self.hints.append(("jobs", queue, look_back))

    def jobs_ahead(self, queue: str) -> None:
        self.hints.append(("ahead", queue))

    def cancel_hinted(self) -> None:
        self.hints.append(("cancel",))

    def command_hinted(self) -> None:
        self.hints.append(("command",))

    def schedules_hinted(self) -> None:
        self.hints.append(("schedules",))

    def notifications_missed(self) -> None:
        self.hints.append(("missed",))


def passed_on(channel: str, payload: str) -> list[tuple[object, ...]]:
    told = Told()
    Listener("", owner=OWNER, events=told)._pass_on(channel, payload)
    return told.hints


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("payload", MALFORMED, ids=lambda payload: ascii(payload[:24]))
def test_what_does_not_look_like_ours_is_ignored(channel: str, payload: str) -> None:
    # A change of schedules is told without saying which.
    assert passed_on(channel, payload) == ([("schedules",)] if channel == listening.SCHEDULE_CHANNEL else [])


def test_what_looks_like_ours_is_passed_on() -> None:
    assert passed_on("tasuki_job", "default 0") == [("jobs", "default", 0.0)]
    assert passed_on("tasuki_job", "mail.de:1 3600500") == [("jobs", "mail.de:1", 3600.5)]
    assert passed_on("tasuki_job", "default 99999999999") == [("jobs", "default", 99_999_999.999)]
    assert passed_on("tasuki_job", "default ahead") == [("ahead", "default")]
    assert passed_on("tasuki_cancel", str(OWNER)) == [("cancel",)]
    assert passed_on("tasuki_command", str(OWNER)) == [("command",)]
    assert passed_on("tasuki_schedule", "") == [("schedules",)]


def test_what_is_for_another_supervisor_is_not() -> None:
    assert passed_on("tasuki_cancel", str(uuid4())) == []
    assert passed_on("tasuki_command", str(uuid4())) == []
