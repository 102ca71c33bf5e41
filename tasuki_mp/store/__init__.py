"""The modules that talk to Postgres: one function for each statement in `sql/queries`.

They let psycopg's errors through; the client and the command line turn them into `DatabaseError`.
"""

from tasuki_mp.store.connect import connect, connect_async
from tasuki_mp.store.upkeep import (
    Left,
    OtherSupervisor,
    SupervisorRow,
    deregister,
    drain_left,
    ensure_partitions,
    hold_unknown,
    next_due,
    other_supervisors,
    paused_queues,
    postmaster_uptime,
    register,
    register_handlers,
    release_held,
    trim_attempts,
)
from tasuki_mp.store.work import (
    Beat,
    BeatVerdict,
    Finished,
    FinishItem,
    LeaseEntry,
    Rescued,
    Verdict,
    finish,
    heartbeat,
    lease,
    release_unknown,
    rescue,
)

__all__ = [
    "Beat",
    "BeatVerdict",
    "FinishItem",
    "Finished",
    "LeaseEntry",
    "Left",
    "OtherSupervisor",
    "Rescued",
    "SupervisorRow",
    "Verdict",
    "connect",
    "connect_async",
    "deregister",
    "drain_left",
    "ensure_partitions",
    "finish",
    "heartbeat",
    "hold_unknown",
    "lease",
    "next_due",
    "other_supervisors",
    "paused_queues",
    "postmaster_uptime",
    "register",
    "register_handlers",
    "release_held",
    "release_unknown",
    "rescue",
    "trim_attempts",
]
