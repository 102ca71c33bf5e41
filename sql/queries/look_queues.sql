-- Every queue that anybody has spoken of: a handler declares it, a living supervisor works on it, or it has a row.
-- Locks: nothing. Reads small tables only.
select
  known.name,
  q.paused_at,
  extract(epoch from q.keep_for)::float8 as keep_seconds,
  q.max_running,
  q.max_running_per_key,
  (
    select count(*)
    from tasuki.supervisor as s
    where
      known.name = any(s.queues)
      and s.seen_at + s.lease_seconds * interval '1 second' >= coalesce(%(now)s::timestamptz, now())
  ) as supervisors
from (
  select queue as name from tasuki.handler
  union
  select unnest(s.queues) from tasuki.supervisor as s
  union
  select name from tasuki.queue
) as known
left join tasuki.queue as q on q.name = known.name
order by known.name
