-- The running jobs, those that run longest first, with the host and process they run in.
-- Locks: nothing. Index: job_owner.
select j.id, j.queue, j.handler, j.attempt, j.max_attempts, s.host, j.pid, j.slot,
  extract(epoch from coalesce(%(now)s::timestamptz, now()) - j.started_at)::float8 as age,
  j.cancel_requested_at is not null as is_cancel_requested,
  j.lease_expires_at < coalesce(%(now)s::timestamptz, now()) as is_expired,
  j.progress::float8 as progress, j.progress_note, j.interruptions
from tasuki.job as j
left join tasuki.supervisor as s on s.owner = j.owner
where j.status = 'running'
order by j.started_at nulls last, j.id
limit %(limit)s
