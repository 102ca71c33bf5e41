"""`python -m scripts.cuts`: cut a supervisor's connections at every protocol message, and see that nothing goes wrong.

For each of its connections, at each message before and after it is forwarded: while jobs run, as the connection is made,
and as the supervisor starts. Each time all jobs must come out right and none may run twice. Takes some ten minutes;
`--step 5` tries every fifth message. Exit code 1 at the first cut that does harm; what it was is printed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg

from tests.support.cuts import APPLICATIONS, scene, start_with
from tests.support.postgres import session_server
from tests.support.proxy import Fault

WHILE_JOBS_RUN = {"lease": 45, "finish": 30, "listener": 3}
"""How many messages there are on these connections while the jobs of one play run; on the others next to none."""
FURTHER = 10
"""Messages on a new connection after the handshake."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.cuts", description=__doc__.partition("\n")[0])
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--application", choices=APPLICATIONS, action="append", help="only these connections")
    parser.add_argument("--no-start", action="store_true", help="not as the supervisor starts")
    given = parser.parse_args()
    with session_server() as server, tempfile.TemporaryDirectory() as folder:
        template = server.template()
        with (
            server.database(template) as dsn,
            psycopg.connect(dsn, autocommit=True) as conn,
            scene(dsn, conn, Path(folder)) as stage,
        ):
            stage.play()
            greeting = [message.tag for message in stage.proxy.messages if message.application.endswith(" lease")]
            handshake = range(1, greeting.index("Z") + 2 + FURTHER, given.step)
            for application in given.application or APPLICATIONS:
                fault = Fault(application=application)
                running = range(1, WHILE_JOBS_RUN.get(application, 0) + 1, given.step)
                sweep(f"{application}, while jobs run", fault, running, stage.play_with)
                anew = partial(stage.play_with, is_cut_before=True, is_awaited=True)
                sweep(f"{application}, as it is made", fault, handshake, anew)
        if not given.no_start:
            with server.database(template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
                endless = itertools.count(1, given.step)
                sweep("at the start", Fault(), endless, lambda cut: start_with(cut, dsn, conn))
        server.drop(template)
    return 0


def sweep(what: str, fault: Fault, points: range | Iterator[int], play: Callable[[Fault], bool]) -> None:
    """Play with a cut at each of these messages, before and after; endless points end where nothing comes any more."""
    began = time.monotonic()
    happened = 0
    for at in points:
        for is_forwarded in (False, True):
            cut = replace(fault, at=at, is_forwarded=is_forwarded)
            try:
                has_happened = play(cut)
            except BaseException:
                print(f"{what}: harm done by {cut}", flush=True)
                raise
            happened += has_happened
        if not has_happened and not isinstance(points, range):
            break
    print(f"{what}: {happened} cuts, no harm, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
