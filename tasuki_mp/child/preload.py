"""Imported by the forkserver when it starts, and by nobody else: shields it from signals and imports the application.

The standard library's own preloading swallows an ImportError and dies of a SyntaxError, so it is given only this module,
which reports whatever happens through the first child's hello.
"""

from __future__ import annotations

import concurrent.futures.process
import multiprocessing.popen_forkserver
import multiprocessing.queues
import multiprocessing.sharedctypes
import multiprocessing.synchronize
import os

import msgspec

from tasuki_mp.child import application, main
from tasuki_mp.child.guard import shield_forkserver
from tasuki_mp.child.threads import limit_native_threads

# What every child needs to begin is imported here, once, and not by each of them: that halves the time of its start.
EVERY_CHILD_NEEDS = (
    concurrent.futures.process,
    multiprocessing.popen_forkserver,
    multiprocessing.queues,
    multiprocessing.sharedctypes,
    multiprocessing.synchronize,
    main,
)

_spec = os.environ.pop(application.SPEC_VARIABLE, None)
if _spec is not None:
    shield_forkserver()
    limit_native_threads()
    os.environ.pop("TASUKI_DSN", None)  # the queue's credentials are no business of the handlers
    _decoded = msgspec.json.decode(_spec, type=application.AppSpec)
    if _decoded.is_preloaded:
        application.preload(_decoded)
