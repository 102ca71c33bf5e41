-- Insert jobs that may have unique keys; see the function. Then tell the supervisors of what is new or changed, and
-- due now or within a minute.
-- Locks: the keys that it takes, in order, until the transaction ends. Indexes: unique_key_pkey, all of the job table's.
with came as materialized (
  select k.ordinal, k.job_id, k.outcome
  from tasuki.enqueue_keyed(
    %(ids)s::bigint[], %(queues)s::text[], %(handlers)s::text[], %(payloads)s::text[]::jsonb[], %(priorities)s::smallint[],
    %(most_attempts)s::integer[],
    array(
      select coalesce(d.at, clock_timestamp() + d.delay * interval '1 second')
      from unnest(%(ats)s::timestamptz[], %(delays)s::float8[]) with ordinality as d (at, delay, ordinal)
      order by d.ordinal
    ),
    %(limits)s::text[]::jsonb[], %(keys)s::text[], %(unique_keys)s::text[], %(unique_for)s::float8[], %(on_conflicts)s::text[]
  ) as k
),
told as materialized (
  select pg_notify('tasuki_job', due.queue || case when due.wait > interval '0' then ' ahead' else ' 0' end)
  from (
    select distinct
      (%(queues)s::text[])[came.ordinal] as queue,
      coalesce(
        (%(ats)s::timestamptz[])[came.ordinal] - clock_timestamp(),
        (%(delays)s::float8[])[came.ordinal] * interval '1 second'
      ) as wait
    from came
    where %(is_told)s::boolean and came.outcome in ('new', 'replaced')
  ) as due
  where due.wait < interval '1 minute'
)
select came.job_id, came.outcome, (select count(*) from told) as told
from came
order by came.ordinal
