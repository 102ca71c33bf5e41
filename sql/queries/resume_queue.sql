-- Lease from this queue again, and let supervisors look as far back as it was paused; no row if it was not.
-- Locks: the queue's row. Index: primary key.
with paused as materialized (
  select q.name, q.paused_at from tasuki.queue as q where q.name = %(queue)s and q.paused_at is not null for update
),
opened as (
  update tasuki.queue set paused_at = null where name = any(array(select name from paused))
)
select pg_notify('tasuki_job', name || ' ' || ceil(extract(epoch from clock_timestamp() - paused_at) * 1000 + 1000)::bigint)
from paused
