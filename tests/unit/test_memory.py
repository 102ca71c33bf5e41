"""How much memory a host's jobs may have, on made-up machines: a folder with /proc and cgroup file systems for each."""

from __future__ import annotations

from pathlib import Path

from tasuki_mp.memory import default_limit
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
