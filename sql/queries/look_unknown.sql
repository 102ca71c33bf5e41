-- Handlers that have pending jobs, and that no living supervisor knows; and for how long the oldest of those has been due.
-- Locks: nothing. Reads the whole live table.
select
  waiting.handler,
  waiting.jobs,
  greatest(0, extract(epoch from coalesce(%(now)s::timestamptz, now()) - waiting.due_at))::float8 as oldest_due
from (
  select j.handler, count(*) as jobs, min(j.scheduled_at) as due_at
  from tasuki.job as j
  where j.status = 'pending'
  group by j.handler
) as waiting
where
  not exists (
    select from tasuki.supervisor as s
    where
      waiting.handler = any(s.handlers)
      and s.seen_at + s.lease_seconds * interval '1 second' >= coalesce(%(now)s::timestamptz, now())
  )
order by waiting.jobs desc, waiting.handler
