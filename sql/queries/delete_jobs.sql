-- Delete these jobs with their history and checkpoints, if they are (still) in a queue and state that is meant; what came
-- of each. Running jobs stay. Never waits: "locked" is what somebody else holds just now, to be tried again.
-- Locks: the rows of these jobs, skipping those that somebody else holds. Indexes: primary key, job_archive_id, attempt_job.
with asked as materialized (
  select distinct unnest(%(ids)s::bigint[]) as id
),
live as materialized (
  select
    job.id,
    case
      when job.status = 'running' then 'running'
      when job.status <> all(%(states)s::text[]) or job.queue <> coalesce(%(queue)s::text, job.queue) then 'changed'
      else 'deleted'
    end as verdict
  from (select id from asked order by id) as asked
  cross join lateral (
    select j.id, j.queue, j.status from tasuki.job as j where j.id = asked.id limit 1 for update skip locked
  ) as job
),
removed as (
  delete from tasuki.job where id = any(array(select id from live where verdict = 'deleted'))
),
final as (
  delete from tasuki.job_archive as a
  where
    a.id = any(array(select id from asked))
    and (%(first)s::timestamptz is null or a.finished_at between %(first)s and %(last)s)
    and a.status = any(%(states)s::text[])
    and a.queue = coalesce(%(queue)s::text, a.queue)
  returning a.id
),
gone as materialized (
  select id from live where verdict = 'deleted'
  union
  select id from final
),
attempts as (
  delete from tasuki.attempt where job_id = any(array(select id from gone))
),
checkpoints as (
  delete from tasuki.checkpoint where job_id = any(array(select id from gone))
)
select
  asked.id,
  case
    when gone.id is not null then 'deleted'
    when live.id is not null then live.verdict
    when exists (select from tasuki.job as j where j.id = asked.id) then 'locked'
    when exists (select from tasuki.job_archive as a where a.id = asked.id) then 'changed'
    else 'unknown'
  end as verdict,
  null::bigint as other
from asked
left join live on live.id = asked.id
left join gone on gone.id = asked.id
