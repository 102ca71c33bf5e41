"""tasuki-mp: a multi-process runner for CPU-heavy jobs, durable on nothing but Postgres.

What needs psycopg is imported when it is first used: a child that only runs handlers never loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasuki_mp.app import Tasuki
from tasuki_mp.backoff import Backoff
from tasuki_mp.child.context import Context
from tasuki_mp.errors import (
    AppImportError,
    ConfigError,
    ConflictError,
    DatabaseError,
    EmbeddedError,
    EnqueueInHandlerError,
    HandlerError,
    PayloadError,
    ResultError,
    SchemaError,
    TasukiError,
    UnknownHandlerError,
)
from tasuki_mp.handlers import Handler
from tasuki_mp.job import Job, State
from tasuki_mp.outcome import Cancel, Retry, Snooze
from tasuki_mp.version import __version__

if TYPE_CHECKING:
    from tasuki_mp.client import AsyncClient, AsyncJobHandle, Client, JobHandle
    from tasuki_mp.store.copying import IdRanges

__all__ = [
    "AppImportError",
    "AsyncClient",
    "AsyncJobHandle",
    "Backoff",
    "Cancel",
    "Client",
    "ConfigError",
    "ConflictError",
    "Context",
    "DatabaseError",
    "EmbeddedError",
    "EnqueueInHandlerError",
    "Handler",
    "HandlerError",
    "IdRanges",
    "Job",
    "JobHandle",
    "PayloadError",
    "ResultError",
    "Retry",
    "SchemaError",
    "Snooze",
    "State",
    "Tasuki",
    "TasukiError",
    "UnknownHandlerError",
    "__version__",
]

_LATER = {
    "AsyncClient": "tasuki_mp.client",
    "AsyncJobHandle": "tasuki_mp.client",
    "Client": "tasuki_mp.client",
    "IdRanges": "tasuki_mp.store.copying",
    "JobHandle": "tasuki_mp.client",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
