-- Take due jobs, each under a fresh lease: at most what each entry and the whole may have, in the entries' order. The
-- attempt is counted here, so that a supervisor that dies at once has used one up. What asks for more than there is room for is
-- passed over.
-- Locks: the rows it takes, skipping those that somebody else holds. Index: job_lease (one range for each entry).
with entry as materialized (
  select
    e.queue,
    e.priority,
    coalesce(e.after_at, '-infinity') as after_at,
    e.after_id,
    e.most
  from unnest(
    %(queues)s::text[], %(priorities)s::smallint[], %(after_ats)s::timestamptz[], %(after_ids)s::bigint[], %(mosts)s::integer[]
  ) as e (queue, priority, after_at, after_id, most)
  -- A queue with limits has a statement of its own, lease_limited.sql.
  where not exists (
    select from tasuki.queue as q
    where
      q.name = e.queue
      and (q.paused_at is not null or q.max_running is not null or q.max_running_per_key is not null)
  )
),
taken as materialized (
  select due.id
  from entry
  cross join lateral (
    select j.id
    from tasuki.job as j
    where
      j.status = 'pending'
      and j.held_by is null
      and j.queue = entry.queue
      and j.priority = entry.priority
      and (j.scheduled_at, j.id) > (entry.after_at, entry.after_id)
      and j.scheduled_at <= coalesce(%(now)s::timestamptz, now())
      and j.attempt < j.max_attempts
      and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
    order by j.scheduled_at, j.id
    limit entry.most
    for update skip locked
  ) as due
  limit %(most)s
)
update tasuki.job as j
set
  status = 'running',
  owner = %(owner)s,
  lease_no = j.lease_no + 1,
  attempt = j.attempt + 1,
  lease_expires_at = coalesce(%(now)s::timestamptz, clock_timestamp()) + %(lease_for)s * interval '1 second',
  started_at = null
where j.id = any(array(select id from taken)) and j.status = 'pending'
returning
  j.id,
  j.lease_no,
  j.queue,
  j.handler,
  j.priority,
  j.attempt,
  j.max_attempts,
  j.crashes,
  j.payload::text,
  j.scheduled_at,
  extract(epoch from coalesce(%(now)s::timestamptz, clock_timestamp()) - j.scheduled_at)::float8 as waited,
  j.limits::text,
  j.interruptions,
  j.last_error ->> 'kind' as last_error_kind,
  -- Never at the first lease, which is nearly all of them.
  case when j.lease_no > 1 then (
    select c.state::text from tasuki.checkpoint as c where c.job_id = j.id
  ) end as checkpoint
