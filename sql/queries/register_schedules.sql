-- Remember schedules: those of an application, where the newest start wins, or one that somebody stores at run time, who
-- gets no row back if an application has declared that name. The names come sorted. Ticks count from now on if the
-- schedule is new or its times have changed. Locks: the rows it writes. Index: primary key.
with written as (
  insert into tasuki.schedule as s (
    name, source, timetable, tz, misfire, misfire_after, jitter, overlap, starts_at, ends_at,
    handler, queue, priority, max_attempts, payload, limits, key, tick_argument, version
  )
  select
    n.name, %(source)s, n.timetable, n.tz, n.misfire, n.misfire_after, n.jitter, n.overlap, n.starts_at, n.ends_at,
    n.handler, n.queue, n.priority, n.max_attempts, n.payload::jsonb, n.limits::jsonb, n.key, n.tick_argument, %(version)s
  from unnest(
    %(names)s::text[], %(timetables)s::text[], %(tzs)s::text[], %(misfires)s::text[], %(misfire_afters)s::float8[],
    %(jitters)s::float8[], %(overlaps)s::text[], %(starts_ats)s::timestamptz[], %(ends_ats)s::timestamptz[],
    %(handlers)s::text[], %(queues)s::text[], %(priorities)s::smallint[], %(max_attempts)s::integer[],
    %(payloads)s::text[], %(limits)s::text[], %(keys)s::text[], %(tick_arguments)s::text[]
  ) as n (
    name, timetable, tz, misfire, misfire_after, jitter, overlap, starts_at, ends_at,
    handler, queue, priority, max_attempts, payload, limits, key, tick_argument
  )
  on conflict (name) do update
  set
    source = excluded.source,
    timetable = excluded.timetable,
    tz = excluded.tz,
    misfire = excluded.misfire,
    misfire_after = excluded.misfire_after,
    jitter = excluded.jitter,
    overlap = excluded.overlap,
    starts_at = excluded.starts_at,
    ends_at = excluded.ends_at,
    handler = excluded.handler,
    queue = excluded.queue,
    priority = excluded.priority,
    max_attempts = excluded.max_attempts,
    payload = excluded.payload,
    limits = excluded.limits,
    key = excluded.key,
    tick_argument = excluded.tick_argument,
    version = excluded.version,
    declared_at = clock_timestamp(),
    decided_until = case
      when (s.timetable, s.tz, s.starts_at, s.ends_at)
        is distinct from (excluded.timetable, excluded.tz, excluded.starts_at, excluded.ends_at)
        then greatest(s.decided_until, clock_timestamp())
      else s.decided_until
    end
  where s.source = 'client' or excluded.source = 'app'
  returning s.name
),
told as materialized (
  select pg_notify('tasuki_schedule', '') from written where %(notify)s::boolean limit 1
)
select written.name, (select count(*) from told) as told
from written
