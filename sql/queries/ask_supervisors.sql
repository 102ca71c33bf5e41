-- Ask every living supervisor for something, and wake them; one row for each. Those whose host does not answer are left
-- to expire. Locks: nothing that exists. Index: none; supervisors are few.
with asked as (
  insert into tasuki.command (owner, kind, job_id, lease_no, expires_at)
  select s.owner, %(kind)s, 0, 0, clock_timestamp() + %(seconds)s * interval '1 second'
  from tasuki.supervisor as s
  where s.seen_at > clock_timestamp() - s.lease_seconds * interval '1 second'
  returning id, owner
)
select asked.id, s.owner::text, s.host, s.pid, s.procs, pg_notify('tasuki_command', asked.owner::text)
from asked
join tasuki.supervisor as s on s.owner = asked.owner
