-- Let these pending jobs be due at another time, an instant or a while from now, if they are (still) in a queue that is
-- meant; what came of each. Never waits: "locked" is what somebody else holds just now, to be tried again.
-- Locks: the rows of these jobs, skipping those that somebody else holds. Index: primary key.
with asked as materialized (
  select distinct unnest(%(ids)s::bigint[]) as id
),
locked as materialized (
  select
    job.*,
    coalesce(%(at)s::timestamptz, clock_timestamp() + %(delay)s::float8 * interval '1 second') as due_at,
    case
      when job.status = 'running' then 'running'
      when job.status <> all(%(states)s::text[]) or job.queue <> coalesce(%(queue)s::text, job.queue) then 'changed'
      else 'rescheduled'
    end as verdict
  from (select id from asked order by id) as asked
  cross join lateral (
    select j.id, j.queue, j.status, j.held_by
    from tasuki.job as j
    where j.id = asked.id
    limit 1
    for no key update skip locked
  ) as job
),
written as (
  -- What waits for its key is due; it comes back to that when it is due again.
  update tasuki.job
  set
    scheduled_at = coalesce(%(at)s::timestamptz, clock_timestamp() + %(delay)s::float8 * interval '1 second'),
    held_by = nullif(held_by, 'key')
  where id = any(array(select id from locked where verdict = 'rescheduled'))
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' ' || back)
  from (
    select queue, ceil(extract(epoch from greatest(clock_timestamp() - min(due_at), interval '0')) * 1000)::bigint as back
    from locked
    where verdict = 'rescheduled' and coalesce(held_by, 'key') = 'key' and due_at <= clock_timestamp()
    group by queue
  ) as due
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
