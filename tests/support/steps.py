"""A long job that a test leads step by step: it comes to a `Door`, says what was restored, and obeys.

The application is `tests.support.steps:app`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess

from tasuki_mp import Backoff, Context, Snooze, Tasuki

app = Tasuki()
AT_ONCE = Backoff(factor=0)


@app.handler(max_attempts=5, backoff=AT_ONCE)
def steps(door: str, ctx: Context) -> str | Snooze:
    """Obey: "return TEXT", "raise TEXT", "snooze", "exit CODE"; or say "done" after:

    "progress FRACTION NOTE", "checkpoint JSON", "keep JSON" (done when it is on record), "stop?" (done when it should),
    "log TEXT" (through ctx.log, and as a library does), "print TEXT" (as Python, as C code and as a subprocess do),
    "mute" (which leads both standard streams elsewhere), "babble" (done before it begins to print for ever).
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(door)
        me = {"pid": os.getpid(), "job": ctx.job_id, "lease_no": ctx.lease_no, "attempt": ctx.attempt}
        sock.sendall(json.dumps({**me, "restored": ctx.restored}).encode() + b"\n")
        orders = sock.makefile("r", encoding="utf-8")
        while order := orders.readline().rstrip("\n"):
            act, _, text = order.partition(" ")
            match act:
                case "return":
                    return text
                case "raise":
                    raise ValueError(text)
                case "snooze":
                    return Snooze(0)
                case "exit":
                    os._exit(int(text))
                case "progress":
                    fraction, _, note = text.partition(" ")
                    ctx.progress(float(fraction), note)
                case "checkpoint":
                    ctx.checkpoint(json.loads(text))
                case "keep":
                    ctx.checkpoint(json.loads(text), wait=True)
                case "print":
                    print(f"Python: {text}")
                    os.write(2, f"C: {text}\n".encode())
                    subprocess.run(["echo", f"subprocess: {text}"], check=True)
                case "log":
                    ctx.log.info(text)
                    logging.getLogger("library").warning(text)
                case "mute":
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
                    os.close(null)
                case "babble":
                    sock.sendall(b"done\n")
                    while True:
                        os.write(1, b"babble " * 10_000 + b"\n")
                case "stop?":
                    while not ctx.should_stop:
                        os.sched_yield()
                case _:
                    raise RuntimeError(f"no such order: {order}")
            sock.sendall(b"done\n")
    raise RuntimeError("the test went away")


@app.handler(max_attempts=1)
def once(door: str, ctx: Context) -> str | Snooze:
    """The same with one attempt only."""
    return steps.function(door, ctx)
