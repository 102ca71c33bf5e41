-- Every supervisor but this one, and owners of expired leases that have no row any more. Stale: not seen for a whole lease.
-- Indexes: primary key, job_owner.
select
  s.owner, s.host, s.pid, s.pid_started, s.boot_id, s.pid_ns,
  s.seen_at < now() - s.lease_seconds * interval '1 second' as is_stale, s.lease_seconds
from tasuki.supervisor as s
where s.owner <> %(own)s
union all
select o.owner, '', 0, 0, '', '', true, 0
from (select distinct j.owner from tasuki.job as j where j.status = 'running' and j.lease_expires_at < now()) as o
where o.owner <> %(own)s and not exists (select from tasuki.supervisor as s where s.owner = o.owner)
