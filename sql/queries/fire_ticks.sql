-- Write down what was decided about ticks of schedules that this transaction has taken, and insert the jobs of those that
-- fire: both, or neither, and each once. With overlap = 'skip' a tick does not fire while a job of an earlier one is alive.
-- It must be a statement of its own, with a snapshot from after the schedules were taken.
-- Locks: the rows it writes. Indexes: primary keys, job_schedule.
with item as materialized (
  select i.*
  from unnest(%(schedules)s::text[], %(ticks)s::timestamptz[], %(verdicts)s::text[], %(passed_overs)s::integer[])
    as i (schedule, tick, verdict, passed_over)
),
judged as materialized (
  select
    item.schedule, item.tick, item.passed_over,
    case
      when item.verdict = 'fired' and s.overlap = 'skip' and (
        row_number() over (partition by item.schedule, item.verdict order by item.tick) > 1
        -- The limit keeps the planner from reading all jobs of all schedules instead.
        or (select true from tasuki.job as j where j.schedule = item.schedule limit 1)
      ) then 'overlap'
      else item.verdict
    end as verdict
  from item
  join tasuki.schedule as s on s.name = item.schedule
),
ticked as (
  insert into tasuki.schedule_tick (schedule, tick, verdict, job_id, passed_over, owner)
  select
    schedule, tick, verdict, case verdict when 'fired' then nextval('tasuki.job_id_seq') end, passed_over, %(owner)s
  from judged
  order by schedule, tick
  on conflict (schedule, tick) do nothing
  returning schedule, tick, verdict, job_id
),
inserted as (
  insert into tasuki.job (id, queue, handler, payload, priority, max_attempts, limits, key, scheduled_at, schedule)
  select
    t.job_id, s.queue, s.handler,
    case
      when s.tick_argument is null then s.payload
      else s.payload
        || jsonb_build_object(s.tick_argument, to_char(t.tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    end,
    s.priority, s.max_attempts, s.limits, s.key,
    greatest(clock_timestamp(), t.tick + random() * s.jitter * interval '1 second'), s.name
  from ticked as t
  join tasuki.schedule as s on s.name = t.schedule
  where t.verdict = 'fired'
  order by t.job_id
),
moved as (
  update tasuki.schedule as s
  set decided_until = m.until
  from (select schedule, max(tick) as until from item group by schedule) as m
  where s.name = m.schedule and s.decided_until < m.until
),
told as materialized (
  select pg_notify('tasuki_job', due.queue || ' 0')
  from (
    select distinct s.queue
    from ticked as t
    join tasuki.schedule as s on s.name = t.schedule
    where %(notify)s::boolean and t.verdict = 'fired' and s.jitter = 0
  ) as due
)
select ticked.schedule, ticked.tick, ticked.verdict, ticked.job_id, (select count(*) from told) as told
from ticked
