"""What must be true of the database once everything has ended, whatever went wrong on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

_RULES = {
    "a job is live and in the archive": """
        SELECT id FROM tasuki.job INTERSECT SELECT id FROM tasuki.job_archive""",
    "a job is in the archive twice": """
        SELECT id FROM tasuki.job_archive GROUP BY id HAVING count(*) > 1""",
    "a job was there and is gone": """
        SELECT wanted.id FROM unnest(%(ids)s::bigint[]) AS wanted (id)
         WHERE NOT EXISTS (SELECT FROM tasuki.job AS j WHERE j.id = wanted.id)
           AND NOT EXISTS (SELECT FROM tasuki.job_archive AS f WHERE f.id = wanted.id)""",
    "a lease number was used for two attempts": """
        SELECT job_id, lease_no FROM tasuki.attempt GROUP BY job_id, lease_no HAVING count(*) > 1""",
    "the lease number fell": """
        SELECT a.job_id, a.lease_no FROM tasuki.attempt AS a
         WHERE a.lease_no > coalesce((SELECT j.lease_no FROM tasuki.job AS j WHERE j.id = a.job_id),
                                     (SELECT f.lease_no FROM tasuki.job_archive AS f WHERE f.id = a.job_id))""",
    "more attempts than allowed": """
        SELECT id, attempt FROM tasuki.job WHERE attempt > max_attempts
        UNION ALL SELECT id, attempt FROM tasuki.job_archive WHERE attempt > max_attempts""",
    "a session is idle in a transaction": """
        SELECT pid, application_name, query FROM pg_stat_activity
         WHERE datname = current_database() AND state LIKE 'idle in transaction%%'""",
}
_AT_REST = {
    "a job is still running": "SELECT id, owner, lease_expires_at FROM tasuki.job WHERE status = 'running'",
    "a supervisor that has stopped is still listed": "SELECT owner, pid FROM tasuki.supervisor",
}


def check(conn: psycopg.Connection[Any], ids: Sequence[int] = (), *, at_rest: bool = True) -> None:
    """Fail unless the invariants hold. `ids` are jobs that were enqueued; at rest no supervisor is there any more."""
    for what, query in {**_RULES, **(_AT_REST if at_rest else {})}.items():
        rows = conn.execute(query.encode(), {"ids": list(ids)}).fetchall()
        assert not rows, f"{what}: {rows}"
