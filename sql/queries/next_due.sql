-- Seconds until the earliest job that these handlers could take from these queues; zero or less if one is due, null if
-- there is none; and when that was looked at. Locks: nothing. Index: job_lease (one look for each queue and priority).
select
  extract(epoch from min(first.scheduled_at) - clock_timestamp())::float8,
  array(
    select q.name::text
    from tasuki.queue as q
    where q.name = any(%(queues)s::text[]) and (q.max_running is not null or q.max_running_per_key is not null)
    order by q.name
  ) as limited,
  now() as looked_at
from unnest(%(queues)s::text[]) as e (queue)
cross join generate_series(0, 3) as p (priority)
cross join lateral (
  select j.scheduled_at
  from tasuki.job as j
  where
    j.status = 'pending'
    and j.held_by is null
    and j.queue = e.queue
    and j.priority = p.priority::smallint
    and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
  order by j.scheduled_at, j.id
  limit 1
) as first
-- From a queue with limits a due job may not be leasable; whoever makes it so says so.
where not exists (
  select from tasuki.queue as q
  where
    q.name = e.queue
    and (
      q.paused_at is not null
      or ((q.max_running is not null or q.max_running_per_key is not null) and first.scheduled_at <= clock_timestamp())
    )
)
