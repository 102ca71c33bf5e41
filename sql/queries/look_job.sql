-- Everything about one job, wherever it is: the live row first, or else the archive's.
-- Locks: nothing. Index: primary key, job_archive_id, job_retry_of, job_archive_retry_of.
select j.id, j.queue, j.handler, j.status as state, j.payload::text as payload, j.priority, j.attempt, j.max_attempts,
  j.crashes, j.lease_no, j.created_at, j.scheduled_at, j.started_at, null::timestamptz as finished_at,
  j.lease_expires_at, j.cancel_requested_at, j.held_by, s.host, j.pid, j.slot::int as slot,
  null::text as result, j.last_error::text as error, null::text as usage, null::text as output,
  j.retry_of, null::bigint as retried_as,
  j.progress::float8 as progress, j.progress_note, j.interruptions, c.state::text as checkpoint, c.written_at as checkpoint_at,
  j.limits::text as limits
from tasuki.job as j
left join tasuki.supervisor as s on s.owner = j.owner
left join tasuki.checkpoint as c on c.job_id = j.id
where j.id = %(id)s
union all
select a.id, a.queue, a.handler, a.status, a.payload::text, a.priority, a.attempt, a.max_attempts,
  a.crashes, a.lease_no, a.created_at, a.scheduled_at, a.started_at, a.finished_at,
  null, null, null, null, null, null,
  a.result::text, a.error::text, a.usage::text, a.output,
  a.retry_of, (
    select max(copies.id)
    from (
      select c.id from tasuki.job as c where c.retry_of = a.id
      union all
      select c.id from tasuki.job_archive as c where c.retry_of = a.id
    ) as copies
  ),
  null, null, null, c.state::text, c.written_at,
  a.limits::text
from tasuki.job_archive as a
left join tasuki.checkpoint as c on c.job_id = a.id
where a.id = %(id)s
limit 1
