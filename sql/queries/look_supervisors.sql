-- Every supervisor that registered and was not removed; the stale ones have not been heard of for a whole lease.
-- Locks: nothing.
select s.host, s.pid, s.version, s.procs, s.queues, s.handlers, s.started_at,
  extract(epoch from coalesce(%(now)s::timestamptz, now()) - s.seen_at)::float8 as seen_ago,
  s.seen_at + s.lease_seconds * interval '1 second' < coalesce(%(now)s::timestamptz, now()) as is_stale,
  (select count(*) from tasuki.job as j where j.status = 'running' and j.owner = s.owner) as running
from tasuki.supervisor as s
order by s.host, s.started_at, s.owner
