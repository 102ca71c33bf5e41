"""For the tests of applications: run jobs inline in the caller's transaction, look at what was enqueued, travel in time.

With pytest, the fixture `tasuki` brings a PostgreSQL and a fresh database for each test; see docs/testing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasuki_mp.testing.inline import Run, declare, drain, run_due
    from tasuki_mp.testing.sandbox import Sandbox, Server
    from tasuki_mp.testing.seen import EnqueuedJob, assert_enqueued, assert_not_enqueued, enqueued
    from tasuki_mp.testing.ticks import fire_ticks

__all__ = [
    "EnqueuedJob",
    "Run",
    "Sandbox",
    "Server",
    "assert_enqueued",
    "assert_not_enqueued",
    "declare",
    "drain",
    "enqueued",
    "fire_ticks",
    "run_due",
]

_MODULES = {
    "inline": ("Run", "declare", "drain", "run_due"),
    "sandbox": ("Sandbox", "Server"),
    "seen": ("EnqueuedJob", "assert_enqueued", "assert_not_enqueued", "enqueued"),
    "ticks": ("fire_ticks",),
}


def __getattr__(name: str) -> Any:
    # pytest loads the plugin in this package wherever tasuki-mp is installed; the rest only where it is used.
    for module, names in _MODULES.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
