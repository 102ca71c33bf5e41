-- Insert a job of a schedule here and now, whatever its times, pauses and other jobs say. No row: there is no such
-- schedule. Locks: nothing that others wait for. Index: primary key.
with s as materialized (
  select s.*, clock_timestamp() as now from tasuki.schedule as s where s.name = %(name)s for key share
),
ticked as (
  insert into tasuki.schedule_tick (schedule, tick, verdict, job_id)
  select name, now, 'manual', nextval('tasuki.job_id_seq') from s
  returning job_id
),
inserted as (
  insert into tasuki.job (id, queue, handler, payload, priority, max_attempts, limits, key, scheduled_at, schedule)
  select
    ticked.job_id, s.queue, s.handler,
    case
      when s.tick_argument is null then s.payload
      else s.payload
        || jsonb_build_object(s.tick_argument, to_char(s.now at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    end,
    s.priority, s.max_attempts, s.limits, s.key, s.now, s.name
  from s, ticked
),
told as materialized (
  select pg_notify('tasuki_job', s.queue || ' 0') from s
)
select ticked.job_id, (select count(*) from told) as told
from ticked
