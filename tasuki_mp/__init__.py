"""tasuki-mp: a multi-process runner for CPU-heavy jobs, durable on nothing but Postgres.

What needs psycopg is imported when it is first used: a child that only runs handlers never loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasuki_mp.app import Tasuki
from tasuki_mp.backoff import Backoff
from tasuki_mp.child.context import Context
from tasuki_mp.child.joblog import add_running_job
from tasuki_mp.errors import (
    AppImportError,
    BatchError,
    Canceled,
    CheckpointError,
    ConfigError,
    ConflictError,
    DatabaseError,
    EmbeddedError,
    EnqueueInHandlerError,
    HandlerError,
    JobCanceledError,
    JobFailedError,
    MapError,
    PayloadError,
    ResultError,
    ScheduleError,
    SchemaError,
    SoftTimeout,
    TasukiError,
    UnknownHandlerError,
    UnknownJobError,
)
from tasuki_mp.handlers import Handler
from tasuki_mp.job import FailedJob, Job, Progress, State
from tasuki_mp.outcome import Cancel, Retry, Snooze
from tasuki_mp.version import __version__

if TYPE_CHECKING:
    from tasuki_mp.batching import AsyncBatch, Batch
    from tasuki_mp.client import AsyncClient, AsyncJobHandle, Client, JobHandle
    from tasuki_mp.mapping import AsyncMap, Map
    from tasuki_mp.store.batches import BatchStatus
    from tasuki_mp.store.change import Changed
    from tasuki_mp.store.copying import IdRanges
    from tasuki_mp.store.queues import Queue
    from tasuki_mp.store.select import JobFilter, JobPage, JobSummary

__all__ = [
    "AppImportError",
    "AsyncBatch",
    "AsyncClient",
    "AsyncJobHandle",
    "AsyncMap",
    "Backoff",
    "Batch",
    "BatchError",
    "BatchStatus",
    "Cancel",
    "Canceled",
    "Changed",
    "CheckpointError",
    "Client",
    "ConfigError",
    "ConflictError",
    "Context",
    "DatabaseError",
    "EmbeddedError",
    "EnqueueInHandlerError",
    "FailedJob",
    "Handler",
    "HandlerError",
    "IdRanges",
    "Job",
    "JobCanceledError",
    "JobFailedError",
    "JobFilter",
    "JobHandle",
    "JobPage",
    "JobSummary",
    "Map",
    "MapError",
    "PayloadError",
    "Progress",
    "Queue",
    "ResultError",
    "Retry",
    "ScheduleError",
    "SchemaError",
    "Snooze",
    "SoftTimeout",
    "State",
    "Tasuki",
    "TasukiError",
    "UnknownHandlerError",
    "UnknownJobError",
    "__version__",
    "add_running_job",
]

_LATER = {
    "AsyncMap": "tasuki_mp.mapping",
    "Map": "tasuki_mp.mapping",
    "AsyncBatch": "tasuki_mp.batching",
    "Batch": "tasuki_mp.batching",
    "BatchStatus": "tasuki_mp.store.batches",
    "AsyncClient": "tasuki_mp.client",
    "AsyncJobHandle": "tasuki_mp.client",
    "Changed": "tasuki_mp.store.change",
    "Client": "tasuki_mp.client",
    "IdRanges": "tasuki_mp.store.copying",
    "JobFilter": "tasuki_mp.store.select",
    "JobHandle": "tasuki_mp.client",
    "JobPage": "tasuki_mp.store.select",
    "JobSummary": "tasuki_mp.store.select",
    "Queue": "tasuki_mp.store.queues",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
