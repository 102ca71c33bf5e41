-- Put these pending jobs into another queue, if they are (still) in one that is meant; what came of each. Never waits:
-- "locked" is what somebody else holds just now, to be tried again.
-- Locks: the rows of these jobs, skipping those that somebody else holds. Index: primary key.
with asked as materialized (
  select distinct unnest(%(ids)s::bigint[]) as id
),
locked as materialized (
  select
    job.*,
    case
      when job.status = 'running' then 'running'
      when job.status <> all(%(states)s::text[]) or job.queue <> coalesce(%(queue)s::text, job.queue) then 'changed'
      when job.queue = %(to)s then 'there'
      else 'moved'
    end as verdict
  from (select id from asked order by id) as asked
  cross join lateral (
    select j.id, j.queue, j.status, j.held_by, j.scheduled_at
    from tasuki.job as j
    where j.id = asked.id
    limit 1
    for no key update skip locked
  ) as job
),
written as (
  -- What waits for its key waits for that of another queue.
  update tasuki.job set queue = %(to)s, held_by = nullif(held_by, 'key')
  where id = any(array(select id from locked where verdict = 'moved'))
),
told as materialized (
  select pg_notify('tasuki_job', %(to)s || ' ' || back)
  from (
    select ceil(extract(epoch from clock_timestamp() - min(scheduled_at)) * 1000)::bigint as back
    from locked
    where verdict = 'moved' and coalesce(held_by, 'key') = 'key' and scheduled_at <= clock_timestamp()
    having count(*) > 0
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
