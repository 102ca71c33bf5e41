"""The application inside a child or in the forkserver: imported once, found again after the fork."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from typing import Final

import msgspec

from tasuki_mp.child.describe import TRACEBACK_LIMIT, clip, storable
from tasuki_mp.errors import AppImportError, ConfigError
from tasuki_mp.handlers import Registry, import_report, load_app

SPEC_VARIABLE: Final = "TASUKI_MP_APPLICATION"
"""Carries an `AppSpec` to the forkserver, which starts before anything could be sent to it; removed there at once."""


class AppSpec(msgspec.Struct, frozen=True):
    """Which application to import: `pkg.module:name`, and the folder put first on the module path."""

    app: str
    app_dir: str
    is_preloaded: bool = True
    modules: tuple[str, ...] = ()
    """Imported before it."""


class Application(msgspec.Struct, frozen=True):
    """An imported application, or why there is none."""

    spec: AppSpec
    registry: Registry | None
    max_result: int = 0
    version: str = ""
    error: str = ""
    seconds: float = 0.0
    leftovers: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    """The module path after its import."""


_preloaded: Application | None = None


def import_application(spec: AppSpec) -> Application:
    """The application, imported in this process unless the forkserver already did. Never raises: see `error`."""
    if _preloaded is not None and msgspec.structs.replace(
        _preloaded.spec, is_preloaded=True
    ) == msgspec.structs.replace(spec, is_preloaded=True):
        # multiprocessing gives each child the supervisor's module path instead, on which a handler's own imports would fail.
        sys.path[:0] = [entry for entry in _preloaded.path if entry not in sys.path]
        return _preloaded
    before = _threads_and_sockets()
    started = time.monotonic()
    culprit = ""
    try:
        if spec.modules and spec.app_dir not in sys.path:
            sys.path.insert(0, spec.app_dir)
        for module in spec.modules:
            culprit = f"the module {module!r} of --preload could not be imported:\n"
            importlib.import_module(module)
        culprit = ""
        app = load_app(spec.app, spec.app_dir)
        registry = app.registry
        registry.check()
    except ConfigError as error:  # it was imported, and is no application: where we found out is of no use to anybody
        return Application(spec, None, error=culprit + str(error))
    except BaseException as error:  # noqa: BLE001  SystemExit and worse at import are the application's error
        cause = error.__cause__ if isinstance(error, AppImportError) and error.__cause__ is not None else error
        return Application(spec, None, error=clip(storable(culprit + import_report(cause)), TRACEBACK_LIMIT))
    seconds = time.monotonic() - started
    leftovers = tuple(sorted(_threads_and_sockets() - before))
    return Application(
        spec,
        registry,
        max_result=app.max_result,
        version=app.version,
        seconds=seconds,
        leftovers=leftovers,
        path=tuple(sys.path),
    )


def preload(spec: AppSpec) -> None:
    """Import the application into this forkserver and freeze it, so that its pages stay shared with every child."""
    global _preloaded  # noqa: PLW0603  what a forkserver has imported is global by nature: children inherit it
    _preloaded = import_application(spec)
    # What the import printed is flushed here, once, and not by every child.
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()


def _threads_and_sockets() -> set[str]:
    """What a fork would break: threads that would be gone in the child, sockets that would be shared with it."""
    found: set[str] = set()
    try:
        found.update(f"thread {task}" for task in os.listdir("/proc/self/task") if int(task) != os.getpid())
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except FileNotFoundError:  # the descriptor of the listing itself
                continue
            if target.startswith("socket:"):
                found.add(target)
    except FileNotFoundError:  # no /proc, as on macOS: nothing can be said
        return set()
    return found
