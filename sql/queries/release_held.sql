-- Let go of jobs that were held because nobody knew their handler, now that somebody does.
-- Locks: the rows it writes, skipping those that somebody else locked. Index: job_held.
with locked as materialized (
  select j.id, j.queue, j.scheduled_at
  from tasuki.job as j
  where j.held_by = 'handler' and j.handler = any(%(handlers)s::text[])
  limit %(most)s
  for no key update skip locked
),
marked as (
  update tasuki.job set held_by = null where id = any(array(select id from locked))
),
told as materialized (
  select pg_notify('tasuki_job', queue || ' ' || back)
  from (
    select queue, max(greatest(0, ceil(extract(epoch from clock_timestamp() - scheduled_at) * 1000)))::bigint as back
    from locked
    where %(notify)s::boolean
    group by queue
  ) as due
)
select count(*), (select count(*) from told) as told
from locked
