-- Ask the supervisor that runs a job for something, and wake it; no row if the job does not run.
-- Locks: nothing that exists. Index: primary key of tasuki.job.
with asked as (
  insert into tasuki.command (owner, kind, job_id, lease_no, args, expires_at)
  select j.owner, %(kind)s, j.id, j.lease_no, %(args)s::jsonb, clock_timestamp() + %(seconds)s * interval '1 second'
  from tasuki.job as j
  where j.id = %(id)s::bigint and j.status = 'running'
  returning id, owner
)
select asked.id, coalesce(s.host, ''), pg_notify('tasuki_command', asked.owner::text)
from asked
left join tasuki.supervisor as s on s.owner = asked.owner
