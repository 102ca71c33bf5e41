-- The job that a test runs next: the one that comes first among the due ones, or without any, if `is_patient`, the one that
-- is due next. With it, whether its queue has limits. Locks: nothing. Index: none, tests have few jobs.
select
  j.queue,
  j.priority,
  q.max_running is not null or q.max_running_per_key is not null as is_limited,
  j.scheduled_at
from tasuki.job as j
left join tasuki.queue as q on q.name = j.queue
where
  j.status = 'pending'
  and j.held_by is null
  and q.paused_at is null
  and j.handler = any(%(handlers)s::text[])
  and (%(is_patient)s::boolean or j.scheduled_at <= %(now)s::timestamptz)
order by greatest(j.scheduled_at, %(now)s::timestamptz), j.priority, j.scheduled_at, j.id
limit 1
