-- What each handler's attempts since an instant came to: how they ended, what they took, how long they waited.
-- Reads the days of the archive and of the history that are meant, whole. Locks: nothing.
with ended as (
  select a.handler, a.status as kind, a.usage
  from tasuki.job_archive as a
  where a.finished_at >= %(since)s::timestamptz
  union all
  select
    coalesce(
      (select j.handler from tasuki.job as j where j.id = t.job_id),
      (select f.handler from tasuki.job_archive as f where f.id = t.job_id limit 1),
      '(deleted)'
    ),
    t.kind, t.usage
  from tasuki.attempt as t
  where t.ended_at >= %(since)s::timestamptz
)
select
  e.handler,
  count(*) filter (where e.kind in ('completed', 'failed', 'canceled')) as jobs,
  count(*) filter (where e.kind = 'completed') as completed,
  count(*) filter (where e.kind = 'failed') as failed,
  count(*) filter (where e.kind = 'canceled') as canceled,
  count(*) filter (where e.kind in ('retry', 'rescue')) as retried,
  coalesce(sum((e.usage ->> 'cpu_seconds')::float8), 0)::float8 as cpu_seconds,
  percentile_cont(array[0.5, 0.95, 0.99]) within group (order by (e.usage ->> 'seconds')::float8) as ran,
  percentile_cont(array[0.5, 0.95, 0.99]) within group (order by (e.usage ->> 'waited_seconds')::float8) as waited,
  max((e.usage ->> 'memory_peak')::bigint) as memory_peak
from ended as e
group by e.handler
order by cpu_seconds desc, e.handler
