-- Handlers that have pending jobs, and that no living supervisor knows.
-- Locks: nothing. Reads the whole live table.
select j.handler, count(*) as jobs
from tasuki.job as j
where j.status = 'pending'
  and not exists (
    select from tasuki.supervisor as s
    where j.handler = any(s.handlers)
      and s.seen_at + s.lease_seconds * interval '1 second' >= coalesce(%(now)s::timestamptz, now())
  )
group by j.handler
order by jobs desc, j.handler
