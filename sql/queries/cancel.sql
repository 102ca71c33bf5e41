-- Cancel jobs: a pending one is archived at once, of a running one it is requested, and its supervisor is told. The ids
-- come ascending and without repeats. A row that is not in the table comes back without a verdict: cancel_verdict.sql.
-- Locks: the rows it writes, and waits for them. Index: primary key.
with asked as materialized (
  select a.id from unnest(%(ids)s::bigint[]) as a (id)
),
locked as materialized (
  select asked.id, job.*, clock_timestamp() as ended_at
  from asked
  left join lateral (
    select
      j.id as job_id, j.owner, j.handler, j.queue, j.payload, j.priority, j.status, j.attempt, j.max_attempts, j.crashes,
      j.created_at, j.scheduled_at, j.last_error, j.lease_no
    from tasuki.job as j
    where j.id = asked.id
    limit 1
    for update
  ) as job on true
),
removed as (
  delete from tasuki.job where id = any(array(select job_id from locked where status = 'pending'))
),
archived as (
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
    created_at, scheduled_at, finished_at, lease_no, owner
  )
  select
    job_id, handler, queue, 'canceled', payload, attempt, max_attempts, crashes, priority,
    '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
    created_at, scheduled_at, ended_at, lease_no, null
  from locked
  where status = 'pending'
),
requested as (
  update tasuki.job as j
  set cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp())
  where j.id = any(array(select job_id from locked where status = 'running'))
),
told as materialized (
  select pg_notify('tasuki_cancel', owner::text)
  from (select distinct owner from locked where status = 'running') as busy
)
select
  locked.id,
  case locked.status when 'pending' then 'canceled' when 'running' then 'requested' end as verdict,
  (select count(*) from told) as told
from locked
