-- The newest ticks of a schedule, and what became of their jobs. Locks: nothing. Indexes: schedule_tick_pkey, primary key,
-- job_archive_id.
select
  t.tick, t.verdict, t.passed_over, t.decided_at, t.job_id,
  coalesce(j.status, a.status) as state,
  extract(epoch from a.finished_at - a.started_at)::float8 as ran_for,
  a.result::text as result
from (
  select t.*
  from tasuki.schedule_tick as t
  where t.schedule = %(name)s
  order by t.tick desc
  limit %(limit)s
) as t
left join tasuki.job as j on j.id = t.job_id
left join lateral (
  select f.status, f.started_at, f.finished_at, f.result
  from tasuki.job_archive as f
  where f.id = t.job_id and f.finished_at >= t.decided_at
  limit 1
) as a on true
order by t.tick desc
