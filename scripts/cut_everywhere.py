"""`python -m scripts.cut_everywhere`: cut a supervisor's connections at every single message, one run for each.

A clean run says how many protocol messages it takes to start, lease and run three jobs, write down how they ended, and
stop. Then come two runs for each of these messages: in one the connection is cut instead of forwarding it, in one right
after. Whatever is cut, each job must be done once, at its first attempt, and the tables must be in order. Exit code 1 if
not. A supervisor that can't even start because of the cut is started again, as a service manager would.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg

from tasuki_mp.config import ExitCode
from tests.support import invariants, jobs
from tests.support.hooked import Supervised
from tests.support.postgres import Postgres, session_server
from tests.support.proxy import Fault, FaultProxy

JOBS = 3
OPTIONS = ("--drain", "--lease", "2s", "--poll", "100ms")


@dataclass(frozen=True)
class Cut:
    """Cut at the `at`th message, before or after forwarding it; 0 for a clean run."""

    at: int
    is_forwarded: bool


@dataclass(frozen=True)
class Result:
    """What became of one run."""

    cut: Cut
    messages: int
    where: str
    """The message at which it was cut, or why nothing was."""
    starts: int
    complaint: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.cut_everywhere", description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many messages")
    parser.add_argument("--first", type=int, default=1, help="the message to begin with")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    with session_server() as server:
        template = server.template()
        clean = attempt(server, template, Cut(0, is_forwarded=True))
        print(f"a clean run takes {clean.messages} messages", flush=True)
        cuts = [Cut(at, kind) for at in range(given.first, clean.messages + 1, given.every) for kind in (False, True)]
        with ThreadPoolExecutor(given.parallel) as pool:
            results = [clean]
            for result in pool.map(lambda cut: attempt(server, template, cut), cuts):
                results.append(result)
                if result.complaint:
                    print(f"{result.cut}: {result.where}\n{result.complaint}", flush=True)
                elif len(results) % 50 == 0:
                    print(f"{len(results)} of {len(cuts)}", flush=True)
        server.drop(template)
    for where, count in sorted(Counter(result.where for result in results).items()):
        print(f"{count:5}  {where}")
    failed = [result for result in results if result.complaint]
    again = sum(result.starts > 1 for result in results)
    print(f"{len(results)} runs, {again} started a second time, {len(failed)} failed")
    return 1 if failed else 0


def attempt(server: Postgres, template: str, cut: Cut) -> Result:
    """One run on a database of its own."""
    with server.database(template) as dsn, psycopg.connect(dsn, autocommit=True) as conn, FaultProxy(dsn) as proxy:
        ids = [jobs.add(conn, handler="note") for _ in range(JOBS)]
        armed = proxy.arm(Fault(at=cut.at, is_forwarded=cut.is_forwarded)) if cut.at else None
        complaint, starts = "", 0
        try:
            while starts < 2:
                starts += 1
                with Supervised(proxy.dsn, *OPTIONS) as supervised:
                    code = supervised.wait(timeout=60)
                    supervised.rest()
                if code != ExitCode.DATABASE:
                    break
            assert code == ExitCode.OK, f"exit code {code}:\n" + "\n".join(supervised.log)
            for job_id in ids:
                row = jobs.final(conn, job_id) or {}
                found = (row.get("status"), row.get("attempt"))
                assert found == ("completed", 1), f"job {job_id}: {found}\n" + "\n".join(supervised.log)
            invariants.check(conn, ids)
        except AssertionError as error:
            complaint = str(error)
        messages = len(proxy.messages)
    if armed is None or armed.message is None:
        where = "not cut"
    else:
        where = f"{armed.message.application} {armed.message.direction} {armed.message.tag}"
    return Result(cut, messages, where, starts, complaint)


if __name__ == "__main__":
    sys.exit(main())
