"""A counter, enqueued every 200 ms; each job waits a while and completes, or asks to be tried again.

In one terminal the producer, in another the supervisor; either may be stopped and started again at any time:

    python examples/counter.py --dsn embedded
    tasuki-mp run --dsn embedded --app-dir examples --app counter:app --procs 8

`--dsn embedded` is a PostgreSQL of tasuki-mp's own; leave it out when TASUKI_DSN names yours.
"""

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import threading

from tasuki_mp import Context, Retry, Tasuki, TasukiError

app = Tasuki()


@app.handler
async def count(number: int, *, ctx: Context) -> str | Retry:
    """Wait 1 to 5 seconds; every third number needs a second attempt."""
    seconds = number % 5 + 1
    print(f"{number}: attempt {ctx.attempt}, working for {seconds} s", flush=True)
    await asyncio.sleep(seconds)
    if number % 3 == 0 and ctx.attempt == 1:
        print(f"{number}: once more, please", flush=True)
        return Retry(after=2)
    return f"counted {number}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="which database; without it TASUKI_DSN says")
    parser.add_argument("--count", type=int, help="stop after so many jobs; without it, with Ctrl-C")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between two jobs")
    options = parser.parse_args()
    if options.dsn:
        os.environ["TASUKI_DSN"] = options.dsn
    migrated = subprocess.run([sys.executable, "-m", "tasuki_mp", "migrate"], check=False)
    if migrated.returncode != 0:
        sys.exit(migrated.returncode)  # it has said why

    pause = threading.Event()  # never set: waiting for it is how this loop keeps its pace
    numbers = itertools.count(1) if options.count is None else range(1, options.count + 1)
    try:
        for number in numbers:
            job = app.enqueue(count.job(number))
            print(f"enqueued {number} as job {job.id}", flush=True)
            pause.wait(options.every)
    except KeyboardInterrupt:
        print("no more")


if __name__ == "__main__":
    try:
        main()
    except TasukiError as error:
        sys.exit(str(error))
