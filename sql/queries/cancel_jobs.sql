-- Cancel these jobs, if they are (still) in a queue and state that is meant; what came of each. Never waits: "locked" is
-- what somebody else holds just now, to be tried again.
-- Locks: the rows of these jobs, skipping those that somebody else holds. Index: primary key.
with asked as materialized (
  select distinct unnest(%(ids)s::bigint[]) as id
),
locked as materialized (
  select
    job.*,
    clock_timestamp() as ended_at,
    case
      when job.status <> all(%(states)s::text[]) or job.queue <> coalesce(%(queue)s::text, job.queue) then 'changed'
      when job.status = 'running' then 'requested'
      else 'canceled'
    end as verdict
  from (select id from asked order by id) as asked
  cross join lateral (
    select
      j.id, j.handler, j.queue, j.status, j.payload, j.priority, j.attempt, j.max_attempts, j.crashes, j.created_at,
      j.scheduled_at, j.lease_no, j.owner, j.limits, j.key, j.unique_key,
      j.retry_of, j.batch_id
    from tasuki.job as j
    where j.id = asked.id
    limit 1
    for update skip locked
  ) as job
),
removed as (
  delete from tasuki.job where id = any(array(select id from locked where verdict = 'canceled'))
),
archived as (
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error,
    created_at, scheduled_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of, batch_id
  )
  select
    id, handler, queue, 'canceled', payload, attempt, max_attempts, crashes, priority,
    '{"kind": "canceled", "type": "Canceled", "message": "canceled on request while it was pending"}',
    created_at, scheduled_at, ended_at, lease_no, null, limits, key, unique_key, retry_of,
    batch_id
  from locked
  where verdict = 'canceled'
),
marked as (
  update tasuki.job as j
  set cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp())
  where j.id = any(array(select id from locked where verdict = 'requested'))
),
told as materialized (
  select pg_notify('tasuki_cancel', owner::text)
  from (select distinct owner from locked where verdict = 'requested') as running
)
select
  asked.id,
  case
    when locked.id is not null then locked.verdict
    when exists (select from tasuki.job as j where j.id = asked.id) then 'locked'
    when exists (select from tasuki.job_archive as a where a.id = asked.id) then 'finished'
    else 'unknown'
  end as verdict,
  null::bigint as other,
  (select count(*) from told) as told
from asked
left join locked on locked.id = asked.id
