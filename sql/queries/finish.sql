-- Write down how attempts ended, whatever mixture: final states move to the archive, the others are pending again with a
-- row in the history. A checkpoint goes with a job that completed, and stays with any other. The ids come ascending and
-- without repeats. What does not come back as applied was locked by somebody, or is no longer ours: verdict.sql says
-- which. A cancel request that was accepted wins over going again.
-- Follow-up jobs of those that completed or snoozed are inserted with them, as the handler asked for them.
-- Locks: the rows it writes, skipping those that somebody else holds. Index: primary key. It writes by id only: a row
-- version found before the lock may be an old one, and by id the newest is followed.
with item as materialized (
  select i.*
  from unnest(
    %(ids)s::bigint[], %(lease_nos)s::bigint[], %(kinds)s::text[], %(results)b::text[], %(errors)b::text[],
    %(usages)b::text[], %(outputs)b::text[], %(ran_fors)s::float8[], %(crashes)s::integer[], %(checkpoints)b::text[]
  ) as i (id, lease_no, asked, result, error, usage, output, ran_for, crash, checkpoint)
),
locked as materialized (
  select
    -- First what each of the parts below looks at, that little of a row has to be read for it.
    case when item.asked in ('retry', 'snooze', 'release') and job.cancel_requested_at is not null then 'canceled' else item.asked end as kind,
    job.*,
    item.*,
    clock_timestamp() as ended_at
  from item
  left join lateral (
    select
      j.id as job_id, j.owner, j.handler, j.queue, j.payload, j.priority, j.attempt, j.max_attempts, j.crashes,
      j.created_at, j.scheduled_at, j.started_at, j.cancel_requested_at, j.limits, j.key, j.unique_key,
      j.retry_of, j.batch_id, j.schedule
    from tasuki.job as j
    where j.id = item.id and j.lease_no = item.lease_no and j.owner = %(owner)s
    limit 1
    for update skip locked
  ) as job on true
),
removed as (
  delete from tasuki.job
  where id = any(array(select job_id from locked where job_id is not null and kind in ('completed', 'failed', 'canceled')))
),
archived as (
  insert into tasuki.job_archive (
    id, handler, queue, status, payload, attempt, max_attempts, crashes, priority, result, error, usage, output,
    created_at, scheduled_at, started_at, finished_at, lease_no, owner, limits, key, unique_key, retry_of, batch_id
  )
  select
    id, handler, queue, kind, payload, attempt, max_attempts, crashes + crash, priority,
    case when kind = 'completed' then result::jsonb end,
    case
      when kind = 'canceled' and error is null
        then '{"kind": "canceled", "type": "Canceled", "message": "canceled on request"}'
      else error::jsonb
    end,
    usage::json, output, created_at, scheduled_at,
    coalesce(ended_at - ran_for * interval '1 second', started_at), ended_at, lease_no, owner, limits,
    key, unique_key, retry_of, batch_id
  from locked
  where job_id is not null and kind in ('completed', 'failed', 'canceled')
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
    -- A job that was only given back keeps its place in the queue.
    scheduled_at = case
      when (%(kinds)s::text[])[width_bucket(j.id, %(ids)s::bigint[])] = 'release'
        and (%(delays)s::float8[])[width_bucket(j.id, %(ids)s::bigint[])] = 0 then j.scheduled_at
      else clock_timestamp() + (%(delays)s::float8[])[width_bucket(j.id, %(ids)s::bigint[])] * interval '1 second'
    end,
    attempt = j.attempt
      - ((%(kinds)s::text[])[width_bucket(j.id, %(ids)s::bigint[])] in ('snooze', 'release'))::integer,
    crashes = j.crashes + (%(crashes)s::integer[])[width_bucket(j.id, %(ids)s::bigint[])],
    interruptions = j.interruptions + (
      (%(kinds)s::text[])[width_bucket(j.id, %(ids)s::bigint[])] = 'release'
      and (%(ran_fors)s::float8[])[width_bucket(j.id, %(ids)s::bigint[])] is not null
    )::integer,
    limits = coalesce((%(limits)b::text[])[width_bucket(j.id, %(ids)s::bigint[])]::jsonb, j.limits),
    progress = null,
    progress_note = null,
    last_error = coalesce((%(errors)b::text[])[width_bucket(j.id, %(ids)s::bigint[])]::jsonb, j.last_error)
  where j.id = any(array(select job_id from locked where job_id is not null and kind in ('retry', 'snooze', 'release')))
),
recorded as (
  insert into tasuki.attempt (job_id, lease_no, owner, attempt, kind, error, usage, output, started_at, ended_at)
  select
    id, lease_no, owner, attempt, kind, error::jsonb, usage::json, output,
    coalesce(ended_at - ran_for * interval '1 second', started_at), ended_at
  from locked
  where job_id is not null and kind in ('retry', 'snooze', 'release')
),
-- Null: it has none; empty: what there is, is on record.
kept as (
  insert into tasuki.checkpoint (job_id, lease_no, state, written_at)
  select job_id, lease_no, checkpoint::jsonb, ended_at
  from locked
  where job_id is not null and checkpoint <> '' and kind <> 'completed'
  on conflict (job_id) do update
  set lease_no = excluded.lease_no, state = excluded.state, written_at = excluded.written_at
),
dropped as (
  delete from tasuki.checkpoint
  where job_id = any(array(select job_id from locked where job_id is not null and checkpoint is not null and kind = 'completed'))
),
followed as (
  insert into tasuki.job (queue, handler, payload, priority, max_attempts, limits, key, scheduled_at, schedule)
  select
    f.queue, f.handler, f.payload::jsonb, f.priority, f.max_attempts, f.limits::jsonb, f.key,
    coalesce(f.at, clock_timestamp() + f.delay * interval '1 second'), locked.schedule
  from unnest(
    %(f_ids)s::bigint[], %(f_queues)b::text[], %(f_handlers)b::text[], %(f_payloads)b::text[], %(f_priorities)s::smallint[],
    %(f_max_attempts)s::integer[], %(f_limits)b::text[], %(f_keys)b::text[], %(f_ats)s::timestamptz[],
    %(f_delays)s::float8[]
  ) with ordinality as f (id, queue, handler, payload, priority, max_attempts, limits, key, at, delay, ordinal)
  join locked on locked.id = f.id
  where locked.job_id is not null and locked.kind in ('completed', 'snooze')
  order by f.ordinal
  returning queue, scheduled_at
),
told as materialized (
  -- How far back the first of them has been due; of those that will be within a minute only that they are there.
  select pg_notify('tasuki_job', queue || ' ' || coalesce(max(back)::text, 'ahead'))
  from (
    select queue, case when scheduled_at <= clock_timestamp() then 0::bigint end as back
    from followed
    where %(notify)s::boolean and scheduled_at < clock_timestamp() + interval '1 minute'
    union all
    select
      queue,
      case
        when (%(delays)s::float8[])[width_bucket(id, %(ids)s::bigint[])] > 0 then null
        when kind = 'release' then greatest(0, ceil(extract(epoch from ended_at - scheduled_at) * 1000))::bigint
        else 0
      end as back
    from locked
    where
      %(notify)s::boolean
      and job_id is not null
      and kind in ('retry', 'snooze', 'release')
      and (%(delays)s::float8[])[width_bucket(id, %(ids)s::bigint[])] < 60
  ) as due
  group by queue, back is null
  union all
  -- Costs one look into a small table, and a notification only where somebody waits for that very job.
  select pg_notify('tasuki_done', job_id::text)
  from locked
  where
    %(notify)s::boolean
    and job_id is not null
    and kind in ('completed', 'failed', 'canceled')
    and job_id = any(array(select w.job_id from tasuki.waiter as w))
)
select
  locked.id,
  locked.lease_no,
  locked.kind,
  locked.job_id is not null as is_applied,
  case when locked.kind in ('completed', 'failed', 'canceled') then locked.batch_id end as batch_id,
  (select count(*) from told) as told
from locked
