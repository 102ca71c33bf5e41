-- Tell the supervisors of jobs that were copied in: one notification for each queue, with how far back (in milliseconds)
-- the first of them is due. Locks: nothing. Index: none.
select pg_notify(
  'tasuki_job',
  q.name || ' ' || greatest(0, ceil(extract(epoch from clock_timestamp() - %(since)s::timestamptz) * 1000))::bigint
)
from unnest(%(queues)s::text[]) as q (name)
