-- Tell the supervisors of jobs that were copied in: one notification for each queue, with how far back (in milliseconds)
-- the first of them is due, and one for each queue with jobs that will be soon. Locks: nothing. Index: none.
select pg_notify(
  'tasuki_job',
  q.name || ' ' || greatest(0, ceil(extract(epoch from clock_timestamp() - %(since)s::timestamptz) * 1000))::bigint
)
from unnest(%(queues)s::text[]) as q (name)
union all
select pg_notify('tasuki_job', q.name || ' ahead')
from unnest(%(soon)s::text[]) as q (name)
