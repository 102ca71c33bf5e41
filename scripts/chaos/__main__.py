"""`python -m scripts.chaos`: a fleet of supervisors under random faults, and whether every promise held.

    python -m scripts.chaos --minutes 3 --jobs 20000 --supervisors 4 --seed 1

Exit code 1 if a promise was broken; the rows that show it are printed, and the logs are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from scripts.chaos.run import Plan, Report, run
from scripts.harness import host

SHOWN = 10
"""Violations of one invariant that are printed."""


def main() -> int:
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=default.minutes)
    parser.add_argument("--jobs", type=int, default=default.jobs)
    parser.add_argument("--supervisors", type=int, default=default.supervisors)
    parser.add_argument("--procs", type=int, default=default.procs, help="slots of each supervisor")
    parser.add_argument("--lease", type=float, default=default.lease, help="seconds")
    parser.add_argument("--pause", type=float, default=default.pause, help="mean seconds between two faults")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--level", default=default.level, help="how much the supervisors log")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the journal in any case")
    given = vars(parser.parse_args())
    is_kept = given.pop("keep")
    plan = Plan(**given)
    print(f"seed {plan.seed}; {host.description()}")
    folder = Path(tempfile.mkdtemp(prefix="tasuki-mp-chaos-"))
    report = run(plan, folder, lambda line: print(line, flush=True))
    show(report)
    if report.is_good and not is_kept:
        shutil.rmtree(folder)
    else:
        print(f"logs and journal: {folder}")
    return 0 if report.is_good else 1


def show(report: Report) -> None:
    print("\nfaults")
    for kind, count in sorted(report.faults.items()):
        print(f"  {count:5}  {kind}")
    print("\ntotals")
    for name, value in report.totals.items():
        print(f"  {name}: {value}")
    print("\nviolations")
    for verdict in report.verdicts:
        print(f"  {len(verdict.rows):5}  {verdict.name}: {verdict.promise}")
        for row in verdict.rows[:SHOWN]:
            print(f"         {row}")
    for failure in report.host_failures:
        print(f"      1  {failure}")
    print(f"\nviolations: {sum(len(v.rows) for v in report.verdicts) + len(report.host_failures)}")


if __name__ == "__main__":
    sys.exit(main())
