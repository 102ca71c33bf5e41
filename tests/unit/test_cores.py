"""How many cores may be used, on made-up machines: a folder with /proc and cgroup file systems for each."""

from __future__ import annotations

from pathlib import Path

from tasuki_mp.cores import usable_cores

V2 = "31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"


def machine(root: Path, *, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_cgroups_the_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(root=tmp_path, affinity=8) == 8


def test_here_it_is_at_least_one_and_at_most_the_affinity() -> None:
    assert 1 <= usable_cores() <= usable_cores(root=Path("/nowhere"))


def test_the_smallest_quota_of_all_ancestors_binds(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/system.slice/shop.service",
        mountinfo=V2,
        files={
            "sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
            "sys/fs/cgroup/system.slice/shop.service/cpu.max": "max 100000",
        },
    )
    assert usable_cores(root=root, affinity=8) == 3
    assert usable_cores(root=root, affinity=2) == 2


def test_a_part_of_a_core_counts_as_a_whole_one(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/a", mountinfo=V2, files={"sys/fs/cgroup/a/cpu.max": "50000 100000"})
    assert usable_cores(root=root, affinity=8) == 1
    (root / "sys/fs/cgroup/a/cpu.max").write_text("150000 100000\n")
    assert usable_cores(root=root, affinity=8) == 2


def test_a_container_that_sees_paths_of_the_host_looks_at_its_mount(tmp_path: Path) -> None:
    for path in ("/docker/abc", "/../../elsewhere"):
        root = machine(tmp_path, cgroup=f"0::{path}", mountinfo=V2, files={"sys/fs/cgroup/cpu.max": "200000 100000"})
        assert usable_cores(root=root, affinity=8) == 2


def test_a_mount_of_a_part_of_the_tree(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="0::/docker/abc/inner",
        mountinfo="31 23 0:27 /docker/abc /sys/fs/my\\040cgroup rw - cgroup2 cgroup2 rw",
        files={"sys/fs/my cgroup/inner/cpu.max": "200000 100000"},
    )
    assert usable_cores(root=root, affinity=8) == 2


def test_version_one_and_a_hybrid(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        cgroup="4:memory:/m\n3:cpu,cpuacct:/jobs/mine\n0::/",
        mountinfo="30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 23 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "a broken line",
        files={
            "sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu/jobs/mine/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/jobs/mine/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/m/cpu.cfs_quota_us": "1000",
        },
    )
    assert usable_cores(root=root, affinity=8) == 3
