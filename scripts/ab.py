"""`python -m scripts.ab REVISION NAME… [--new REVISION] [--pairs K]`: what has become slower since then, and by how much.

Runs the same benchmark alternately with the program of an older revision and with that of this working copy (or of
another revision), each on a database of its own. Rates depend on what else the machine does; the CPU time for a job less so,
so on a busy machine believe that. With `--together` both run at the same time, each with half of the slots: whatever the
machine does then, it does to both.

    noop           jobs that do nothing
    cpu1, cpu10    jobs of about 1 and 10 ms of pure Python
    enqueue-many   jobs from a generator, in one transaction
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.harness import host
from scripts.harness.runner import ROOT

NAMES: Final = {"noop": 50_000, "cpu1": 8_000, "cpu10": 1_000, "enqueue-many": 200_000}
"""How many jobs each has."""
FIGURES: Final = {
    "rate": ("jobs/s", "more is better"),
    "cpu": ("µs of CPU time for a job", "less is better"),
    "program": ("µs of it the program's", ""),
    "postgres": ("µs of it PostgreSQL's", ""),
}

Figures = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.ab", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision", help="the older one, as git names it, or a folder that has its files")
    parser.add_argument("names", nargs="+", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--new", metavar="REVISION", help="the newer one  [this working copy]")
    parser.add_argument("--pairs", type=int, default=5, help="how often both alternate  [5]")
    parser.add_argument("--procs", type=int, default=2, help="slots of the program  [2]")
    parser.add_argument("--together", action="store_true", help="run both at the same time, on half of the slots each")
    parser.add_argument("--jobs", type=int, help="instead of as many as each has")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tasuki-mp-ab-") as folder:
        named = Path(given.revision).resolve()
        old = named if named.is_dir() else _checked_out(given.revision, Path(folder) / "old")
        new = _checked_out(given.new, Path(folder) / "new") if given.new else ROOT
        for tree in (old, new):
            _compile(tree)
        for name in given.names:
            pairs: list[dict[Path, Figures]] = []
            for number in range(given.pairs):
                order = (old, new) if number % 2 == 0 else (new, old)
                jobs = given.jobs or NAMES[name]
                if given.together:
                    pairs.append(_measured(order, name, jobs, max(1, given.procs // 2)))
                else:
                    pairs.append({tree: _measured([tree], name, jobs, given.procs)[tree] for tree in order})
            how = "at the same time" if given.together else "alternating"
            print(f"{name}: {given.new or 'this working copy'} against {given.revision}, {given.pairs} pairs, {how}")
            for line in _lines([pair[old] for pair in pairs], [pair[new] for pair in pairs]):
                print(f"  {line}", flush=True)
    print(host.description())
    return 0


def _checked_out(revision: str, folder: Path) -> Path:
    """The files of that revision."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def _compile(tree: Path) -> None:
    """Leave nothing to be compiled at a start, which where compiled modules are not to be written would be every one."""
    folders = [tree / "tasuki_mp", tree / "scripts"]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=True)


def _measured(trees: Sequence[Path], name: str, jobs: int, procs: int) -> dict[Path, Figures]:
    """The figures of each, all run at the same time. Nobody is left behind where one of them fails."""
    command = [sys.executable, "-P", str(ROOT / "scripts" / "ab_run.py"), name, str(jobs), str(procs)]
    started = {
        tree: subprocess.Popen(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, text=True
        )
        for tree in trees
    }
    told = {tree: process.communicate()[0] for tree, process in started.items()}
    for process in started.values():
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
    return {tree: json.loads(text) for tree, text in told.items()}


def _lines(old: list[Figures], new: list[Figures]) -> list[str]:
    lines = []
    for key, (unit, sense) in FIGURES.items():
        ratios = sorted(after[key] / before[key] for before, after in zip(old, new, strict=True))
        before, after = (statistics.median(figures[key] for figures in side) for side in (old, new))
        spread = f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(
            f"{before:>10,.1f} → {after:>10,.1f} {unit:<24}  ratio {statistics.median(ratios):.3f} {spread}  {sense}".rstrip()
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
