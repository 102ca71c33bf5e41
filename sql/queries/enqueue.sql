-- Insert one job and, if it is due now or within a minute, tell the supervisors. Due at `at`, else `delay` seconds from now; now is the clock, not
-- the transaction's start, so that jobs of a long transaction land where leasing looks first.
-- Locks: nothing that exists. Index: all of the table's.
insert into tasuki.job as j (queue, handler, payload, priority, max_attempts, limits, key, scheduled_at)
values (
  %(queue)s,
  %(handler)s,
  %(payload)s::jsonb,
  %(priority)s::smallint,
  %(max_attempts)s::integer,
  %(limits)s::jsonb,
  %(key)s,
  coalesce(%(at)s::timestamptz, clock_timestamp() + %(delay)s::float8 * interval '1 second')
)
returning
  j.id,
  case when %(is_told)s::boolean and j.scheduled_at < clock_timestamp() + interval '1 minute' then
    pg_notify('tasuki_job', j.queue || case when j.scheduled_at <= clock_timestamp() then ' 0' else ' ahead' end)::text
  end as told
