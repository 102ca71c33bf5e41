-- Jobs that are held for their key although fewer of it run than may, and none that is due could be leased instead.
-- Locks: nothing. Indexes: job_held_key, job_counted; reads the whole live table if there are any.
with held as materialized (
  select j.queue, j.key, count(*) as jobs, min(j.id) as example
  from tasuki.job as j
  where j.held_by = 'key'
  group by j.queue, j.key
),
free as materialized (
  select held.*
  from held
  left join tasuki.queue as q on q.name = held.queue
  where
    q.max_running_per_key is null
    or q.max_running_per_key > (
      select count(*)
      from tasuki.job as r
      where r.queue = held.queue and r.key = held.key and r.status = 'running' and r.is_counted
    )
),
ready as materialized (
  select distinct j.queue, j.key
  from tasuki.job as j
  where
    j.status = 'pending'
    and j.held_by is null
    and j.key is not null
    and j.scheduled_at <= clock_timestamp()
    and exists (select from free)
)
select coalesce(sum(free.jobs), 0)::bigint as jobs, min(free.example) as example
from free
where not exists (select from ready where ready.queue = free.queue and ready.key = free.key)
