-- Every schedule, or one, with its last tick and whether a living supervisor minds it. Locks: nothing. Reads the whole
-- table; index: schedule_tick_pkey.
select
  s.name, s.source, s.timetable, s.tz, s.misfire, s.misfire_after, s.jitter, s.overlap, s.starts_at, s.ends_at,
  s.handler, s.queue, s.priority, s.max_attempts, s.payload::text as payload, s.limits::text as limits, s.key, s.tick_argument,
  s.version, s.declared_at, s.paused_at, s.decided_until,
  last.tick as last_tick, last.verdict as last_verdict, last.job_id as last_job,
  exists (
    select from tasuki.supervisor as v
    where
      case s.source when 'app' then s.name = any(v.schedules) else s.handler = any(v.handlers) and v.schedules is not null end
      and v.seen_at + v.lease_seconds * interval '1 second' >= now()
  ) as is_known,
  clock_timestamp() as now
from tasuki.schedule as s
left join lateral (
  select t.tick, t.verdict, t.job_id
  from tasuki.schedule_tick as t
  where t.schedule = s.name and t.verdict in ('fired', 'manual')
  order by t.tick desc
  limit 1
) as last on true
where %(name)s::text is null or s.name = %(name)s
order by s.name
