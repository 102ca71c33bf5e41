"""How much memory a host's jobs may have, on made-up machines: a folder with /proc and cgroup file systems for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasuki_mp.memory import RECENT, OomKills, ceilings, default_limit
from tests.unit.test_cores import V2, machine

GB = 1_000_000_000
MEMINFO = "MemTotal:       16000000 kB\nMemFree:          200000 kB"


def less_reserve(size: int) -> int:
    return size - min(size // 20, 1 << 30)


def test_without_cgroups_it_is_the_physical_memory(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="", mountinfo="", files={"proc/meminfo": MEMINFO})
    assert default_limit(root=root) == less_reserve(16_000_000 * 1024)
    assert default_limit() > 1 << 20


def test_the_smallest_limit_of_all_ancestors_binds(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/system.slice/shop.service",
        mountinfo=V2,
        files={
            "proc/meminfo": MEMINFO,
            "sys/fs/cgroup/system.slice/memory.max": str(3 * GB),
            "sys/fs/cgroup/system.slice/shop.service/memory.max": "max",
        },
    )
    assert default_limit(root=root) == less_reserve(3 * GB)


def test_version_one_and_a_hybrid(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="4:memory:/m/n\n0::/",
        mountinfo="30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        files={
            "proc/meminfo": MEMINFO,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": str(2 * GB),
            "sys/fs/cgroup/memory/m/n/memory.limit_in_bytes": str(5 * GB),
        },
    )
    assert default_limit(root=root) == less_reserve(2 * GB)


# ── what is used, and who was killed ──────────────────────────────────────────────────────────────────────────────────

V1 = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def test_caches_that_the_kernel_can_drop_are_not_used(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/a",
        mountinfo=V2,
        files={
            "proc/meminfo": MEMINFO + "\nMemAvailable:    6000000 kB",
            "sys/fs/cgroup/a/memory.max": str(3 * GB),
            "sys/fs/cgroup/a/memory.current": str(2 * GB),
            "sys/fs/cgroup/a/memory.stat": f"anon 5\nactive_file {GB // 4}\ninactive_file {GB // 2}",
        },
    )
    assert [(ceiling.limit, ceiling.used()) for ceiling in ceilings(root=root)] == [
        (3 * GB, 2 * GB - GB // 4 - GB // 2),
        (16_000_000 * 1024, 10_000_000 * 1024),
    ]


def test_version_one_counts_those_below_too(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="4:memory:/m",
        mountinfo=V1,
        files={
            "proc/meminfo": MEMINFO,
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": str(3 * GB),
            "sys/fs/cgroup/memory/m/memory.usage_in_bytes": str(2 * GB),
            "sys/fs/cgroup/memory/m/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB}\ntotal_active_file 0",
        },
    )
    assert [(ceiling.limit, ceiling.used()) for ceiling in ceilings(root=root)] == [(3 * GB, GB)]


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "file", "text"),
    [
        ("0::/a", V2, "sys/fs/cgroup/a/memory.events", "low 0\noom 9\noom_kill {}"),
        (
            "4:memory:/m",
            V1,
            "sys/fs/cgroup/memory/m/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill {}",
        ),
        ("", "", "proc/vmstat", "nr_free_pages 5\noom_kill {}"),
    ],
    ids=["version two", "version one", "no cgroup"],
)
def test_a_kill_explains_one_death_and_for_a_few_seconds(
    tmp_path: Path, cgroup: str, mountinfo: str, file: str, text: str
) -> None:
    root = machine(tmp_path, cgroup=cgroup, mountinfo=mountinfo, files={file: text.format(7)})
    kills = OomKills(root=root)
    assert kills.is_known
    assert not kills.explains(0.0), "those before our time are not ours"
    (root / file).write_text(text.format(9))
    assert [kills.explains(1.0) for _ in range(3)] == [True, True, False]
    (root / file).write_text(text.format(10))
    kills.look(2.0)
    assert not kills.explains(2.1 + RECENT)


def test_where_nobody_counts_kills_nothing_is_explained(tmp_path: Path) -> None:
    kills = OomKills(root=tmp_path)
    assert (kills.is_known, kills.explains(0.0)) == (False, False)
