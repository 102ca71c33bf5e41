-- Running jobs whose lease has been over for long: somebody should have taken them back by now.
-- Locks: nothing. Index: job_owner, or the whole live table.
select
  count(*) as jobs,
  min(j.id) as example,
  extract(epoch from coalesce(%(now)s::timestamptz, clock_timestamp()) - min(j.lease_expires_at))::float8 as seconds
from tasuki.job as j
where
  j.status = 'running'
  and j.lease_expires_at < coalesce(%(now)s::timestamptz, clock_timestamp()) - greatest(
    coalesce((select max(s.lease_seconds) from tasuki.supervisor as s), 60), 60
  ) * interval '1 second'
