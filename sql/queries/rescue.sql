-- Take back leases of owners that are gone: those that have expired, or all of theirs if the owner is known to be dead.
-- A rescued job is due at once, or as its handler's rule for that says; without an attempt left it failed, with a cancel
-- request it is canceled.
-- Locks: the rows it takes, skipping those that somebody else holds. Index: job_owner.
with gone as materialized (
  select o.owner, coalesce(s.host, 'an unknown host') as host, s.seen_at
  from unnest(%(owners)s::uuid[]) as o (owner)
  left join tasuki.supervisor as s on s.owner = o.owner
),
locked as materialized (
  select
    job.*,
    clock_timestamp() as ended_at,
    case
      when job.cancel_requested_at is not null then 'canceled'
      when job.attempt >= job.max_attempts or not coalesce((job.rule ->> 'is_retry')::boolean, true) then 'failed'
      else 'pending'
    end as kind,
    -- How long it ran is known up to the last heartbeat; what else it used, its supervisor took with it.
    json_strip_nulls(json_build_object(
      'host', gone.host,
      'pid', job.pid,
      'slot', job.slot,
      'waited_seconds',
      case when job.started_at > job.scheduled_at then round(extract(epoch from job.started_at - job.scheduled_at), 6) end,
      'seconds',
      case when gone.seen_at > job.started_at then round(extract(epoch from gone.seen_at - job.started_at), 6) end
    )) as usage,
    case
      when %(is_gone)s::boolean then 'the supervisor on ' || gone.host || ' that ran it is dead'
      else 'the supervisor on ' || gone.host || ' that ran it has not prolonged its lease'
    end
    || case
      when job.attempt < job.max_attempts then ''
      when job.max_attempts = 1 then ', and this was its only attempt'
      else format(', and all %%s attempts are used up', job.max_attempts)
    end as message
  from gone
  cross join lateral (
    select
      j.id as job_id, j.owner, j.handler, j.queue, j.payload, j.priority, j.attempt, j.max_attempts, j.crashes,
      j.created_at, j.scheduled_at, j.started_at, j.cancel_requested_at, j.lease_no, j.pid, j.slot, j.limits, j.key, j.unique_key,
      j.retry_of, j.batch_id,
      -- What its handler wants to follow, as the newest release declared it: the supervisor that knew is gone.
      (select h.options -> 'rules' -> 'lost' from tasuki.handler as h where h.name = j.handler) as rule
    from tasuki.job as j
    where
      j.status = 'running'
      and j.owner = gone.owner
      and (%(is_gone)s::boolean or j.lease_expires_at < coalesce(%(now)s::timestamptz, now()))
    limit %(most)s
    for update skip locked
  ) as job
  limit %(most)s
),
removed as (
  delete from tasuki.job where id = any(array(select job_id from locked where kind <> 'pending'))
),
archived as (
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, error, usage,
    created_at, scheduled_at, started_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of, batch_id
  )
  select
    job_id, handler, queue, kind, payload, attempt, max_attempts, crashes, priority,
    jsonb_build_object(
      'kind', case kind when 'canceled' then 'canceled' else 'lost' end,
      'type', case kind when 'canceled' then 'Canceled' else 'Lost' end,
      'message', case kind when 'canceled' then 'canceled on request; ' else '' end || message
    ),
    usage, created_at, scheduled_at, started_at, ended_at, lease_no + 1, null, limits, key, unique_key, retry_of, batch_id
  from locked
  where kind <> 'pending'
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
    scheduled_at = coalesce(%(now)s::timestamptz, clock_timestamp()) + coalesce(
      (array(select (rule ->> 'after')::float8 from locked order by job_id))[
        width_bucket(j.id, array(select job_id from locked order by job_id))
      ], 0
    ) * interval '1 second',
    last_error = jsonb_build_object(
      'kind', 'lost', 'type', 'Lost', 'message',
      (array(select message from locked order by job_id))[
        width_bucket(j.id, array(select job_id from locked order by job_id))
      ]
    )
  where j.id = any(array(select job_id from locked where kind = 'pending'))
),
recorded as (
  insert into tasuki.attempt (job_id, lease_no, attempt, kind, error, usage, started_at, ended_at)
  select
    job_id, lease_no, attempt, 'rescue', jsonb_build_object('kind', 'lost', 'type', 'Lost', 'message', message),
    usage, started_at, ended_at
  from locked
  where kind = 'pending'
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' 1000')
  from (select distinct queue from locked where kind = 'pending' and %(notify)s::boolean) as due
)
select
  locked.job_id, locked.handler, locked.queue, locked.kind, locked.attempt, locked.slot, (select count(*) from told) as told
from locked
