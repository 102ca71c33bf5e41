"""CPU time of everything that takes part: the program's processes, and those of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from scripts.harness import host


def program_cpu(tag: str) -> float:
    """Seconds that the living processes with this tag have used, and their children that have ended."""
    return sum(_cpu(each.pid) for each in host.tagged(tag))


def server_cpu(conn: psycopg.Connection[Any]) -> float:
    """Seconds that the server has used: the postmaster, all of its processes, and those that have ended."""
    backend = host.process(conn.info.backend_pid)
    if backend is None:
        raise RuntimeError("the server runs on another machine: its CPU time can't be read")
    return _cpu(backend.parent) + sum(_cpu(each.pid) for each in host.children_of(backend.parent))


def _cpu(pid: int) -> float:
    try:
        return host.cpu_seconds(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # ended meanwhile, and is counted with its parent


def memory(pid: int) -> dict[str, float]:
    """MiB by the names of smaps_rollup, and `Private`: what no other process shares."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) / 1024
    return {**found, "Private": found["Private_Clean"] + found["Private_Dirty"]}
