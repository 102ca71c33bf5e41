"""When a child is replaced for what its jobs left or used, and what is said of a child that somebody killed."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tasuki_mp import wire
from tasuki_mp.child.meter import BRIEF_NS, RESET_EVERY_NS, Meter
from tasuki_mp.child.tidy import GROWN, PROBES_IN_A_ROW, Growth
from tasuki_mp.limits import NONE
from tasuki_mp.memory import OomKills
from tasuki_mp.outcome import Died, ErrorInfo, ErrorKind, Killed
from tasuki_mp.supervisor.admission import Admission
from tasuki_mp.supervisor.memory import Memory
from tasuki_mp.supervisor.recycle import Recycling, almost_full, too_full
from tests.unit.test_cores import machine

MIB = 1 << 20


def new_memory(size: int) -> mmap.mmap:
    """So many bytes that this process did not have: what an earlier test has freed is not used again."""
    memory = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = 1
    return memory


def test_after_so_many_jobs_or_seconds() -> None:
    both = Recycling(max_jobs=10, max_age=100.0)
    assert both.reason(jobs=9, age=89.0, spread=1.0) == ""
    assert both.reason(jobs=10, age=0.0, spread=0.0) == "it has run 10 jobs"
    assert both.reason(jobs=0, age=91.0, spread=1.0) == "it is 91 s old", "not all at the same moment"
    assert both.reason(jobs=0, age=91.0, spread=0.0) == ""
    assert Recycling().reason(jobs=10**9, age=1e9, spread=1.0) == ""


def test_after_and_before_jobs_that_could_not_have_more() -> None:
    assert almost_full(79, 100) == almost_full(None, 100) == almost_full(79, None) == ""
    assert almost_full(80 * MIB, 100 * MIB) == "its job took 80 MiB of its limit of 100 MiB"
    assert too_full(79, 100) == ""
    assert too_full(80 * MIB, 100 * MIB) == "it holds 80 MiB, and the next job may take 100 MiB"


def test_twice_as_large_at_several_looks_is_growth() -> None:
    growth = Growth()
    small = 50 * MIB
    large = small + GROWN + 1
    looks = [small, large, small, *[large] * PROBES_IN_A_ROW]
    assert [growth.look(size) for size in looks] == [""] * (len(looks) - 1) + [f"grew by {GROWN // MIB} MiB"]
    growth = Growth()
    growth.begin(small)
    assert [growth.look(large) for _ in range(5)] == [""] * 5, "what a first run has loaded is no growth"
    growth = Growth()
    growth.look(small)
    growth.begin(large)
    assert [growth.look(large + MIB) for _ in range(3)] == ["", "", f"grew by {GROWN // MIB} MiB"], "what was before is"
    growth = Growth()
    growth.look(small)
    growth.keep(large - small)
    assert [growth.look(large) for _ in range(5)] == [""] * 5, "nor is what a resource has loaded"
    big = 1000 * MIB
    growth = Growth()
    assert [growth.look(size) for size in [big, *[big + 500 * MIB] * 5]] == [""] * 6


def test_the_meter_counts_this_job_alone() -> None:
    page = [0] * wire.PAGE_WORDS
    meter = Meter(page)
    now = 10 * RESET_EVERY_NS
    meter.start(now)
    kept = b"x" * (200 * MIB)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    first = meter.stop(now := now + RESET_EVERY_NS)
    assert first.user_us + first.system_us > 190_000, "a subprocess counts"
    assert first.peak is not None
    assert 190 * MIB <= first.peak < 400 * MIB
    assert first.held >= 190 * MIB
    del kept
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass  # what somebody else's thread may do between two jobs
    meter.start(now := now + RESET_EVERY_NS)
    assert page[wire.PAGE_USER] + page[wire.PAGE_SYSTEM] >= first.user_us + first.system_us + 190_000
    second = meter.stop(now := now + RESET_EVERY_NS)
    assert second.user_us + second.system_us < 150_000
    meter.start(now)
    kept = b"x" * (20 * MIB)
    third = meter.stop(now + RESET_EVERY_NS)
    assert third.peak is not None
    assert third.peak < 100 * MIB, "the peak of an earlier job is not its own"
    assert len(kept) == 20 * MIB


def test_brief_jobs_count_all_that_the_process_used_and_no_peak_but_the_last_one_read() -> None:
    page = [0] * wire.PAGE_WORDS
    meter = Meter(page)
    now = 10 * RESET_EVERY_NS
    meter.start(now)
    kept = new_memory(20 * MIB)
    before = time.process_time()
    meter.stop(now := now + BRIEF_NS)

    def job(took: int) -> wire.Used:
        nonlocal now
        meter.start(now)
        until = time.process_time() + 0.002
        while time.process_time() < until:
            pass
        return meter.stop(now := now + took)

    brief = [job(BRIEF_NS - 1) for _ in range(20)]
    told = sum(used.user_us + used.system_us for used in brief) / 1e6
    assert 0.04 <= told <= time.process_time() - before + 0.001
    assert page[wire.PAGE_USER] + page[wire.PAGE_SYSTEM] >= told * 1e6
    assert {used.held for used in brief} == {brief[0].held}
    assert brief[0].held >= 19 * MIB
    long = job(RESET_EVERY_NS)
    told += (long.user_us + long.system_us) / 1e6
    assert 0.042 <= told <= time.process_time() - before + 0.001, "nothing is told twice"
    kept.close()


# ── deaths ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class FakeChild:
    is_killed: bool


@pytest.fixture
def events(tmp_path: Path) -> Path:
    mountinfo = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
    machine(tmp_path, cgroup="0::/a", mountinfo=mountinfo, files={"sys/fs/cgroup/a/memory.events": "oom_kill 3"})
    return tmp_path


def died(root: Path, *, signal: str = "SIGKILL", is_killed: bool = False, kills: int = 0) -> Died | Killed:
    """How a death is told after that many kills by the kernel."""
    dispatcher = SimpleNamespace(slots=[], limits_of=lambda _: NONE, memory=Admission([], lambda _: NONE))
    memory = Memory(
        cast("Any", dispatcher),
        limit=1 << 30,
        recycling=Recycling(),
        stop=lambda *_: None,
        run=lambda _: None,
        kills=OomKills(root=root),
    )
    counter = root / "sys/fs/cgroup/a/memory.events"
    if counter.exists():
        counter.write_text(f"oom_kill {3 + kills}\n")
    child, lease = FakeChild(is_killed), SimpleNamespace(key=(1, 1))
    error = ErrorInfo(
        kind=ErrorKind.CRASH, type="ChildDied", message=f"the child process was killed by {signal}", signal=signal
    )
    outcome, _ = memory.explain(cast("Any", child), cast("Any", lease), Died(error))
    assert isinstance(outcome, Died | Killed)
    return outcome


def test_the_kernels_oom_killer_is_named(events: Path) -> None:
    outcome = died(events, kills=1)
    assert isinstance(outcome, Killed)
    assert (outcome.error.kind, outcome.error.type, outcome.error.signal) == ("memory", "OomKilled", "SIGKILL")


def test_a_kill_that_the_kernel_does_not_count_is_somebody_elses(events: Path, tmp_path: Path) -> None:
    outcome = died(events)
    assert isinstance(outcome, Died)
    assert "by somebody else; the kernel counts no OOM kill" in outcome.error.message
    nowhere = died(tmp_path / "nothing")
    assert isinstance(nowhere, Died)
    assert "maybe the kernel's OOM killer" in nowhere.error.message


@pytest.mark.parametrize("facts", [{"signal": "SIGSEGV"}, {"is_killed": True}])
def test_other_deaths_are_not_the_oom_killers(events: Path, facts: dict[str, Any]) -> None:
    outcome = died(events, kills=1, **facts)
    assert isinstance(outcome, Died)
    assert outcome.error.message.endswith(facts.get("signal", "SIGKILL"))
