-- Give back what was leased to this supervisor in a reply that never arrived: its running rows that it does not know,
-- with their attempt, since nothing of theirs was started. The lease_no grows, so that the lost lease is void.
-- Locks: the rows it takes, skipping those that somebody else holds. Index: job_owner.
with locked as materialized (
  select
    j.id as job_id, j.owner, j.handler, j.queue, j.payload, j.priority, j.attempt, j.max_attempts, j.crashes,
    j.created_at, j.scheduled_at, j.cancel_requested_at, j.lease_no, j.limits, j.key, j.unique_key, j.retry_of, j.batch_id,
    clock_timestamp() as ended_at
  from tasuki.job as j
  where j.status = 'running' and j.owner = %(owner)s and j.id <> all(%(known)s::bigint[])
  for update skip locked
),
removed as (
  delete from tasuki.job where id = any(array(select job_id from locked where cancel_requested_at is not null))
),
archived as (
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
    created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of, batch_id
  )
  select
    job_id, handler, queue, 'canceled', payload, attempt, max_attempts, crashes, priority,
    '{"kind": "canceled", "type": "Canceled", "message": "canceled on request before it was started"}',
    created_at, scheduled_at, ended_at, lease_no + 1, null, limits, key, unique_key, retry_of, batch_id
  from locked
  where cancel_requested_at is not null
),
again as (
  update tasuki.job as j
  set
    status = 'pending',
    owner = null,
    lease_expires_at = null,
    started_at = null,
    pid = null,
    slot = null,
    progress = null,
    progress_note = null,
    lease_no = j.lease_no + 1,
    attempt = j.attempt - 1
  where j.id = any(array(select job_id from locked where cancel_requested_at is null))
),
recorded as (
  insert into tasuki.attempt (job_id, lease_no, attempt, kind, ended_at)
  select job_id, lease_no, attempt, 'release', ended_at
  from locked
  where cancel_requested_at is null
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' ' || back)
  from (
    select queue, max(greatest(0, ceil(extract(epoch from ended_at - scheduled_at) * 1000)))::bigint as back
    from locked
    where cancel_requested_at is null and %(notify)s::boolean
    group by queue
  ) as due
)
select count(*), (select count(*) from told) as told
from locked
