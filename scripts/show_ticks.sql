-- What came of each tick, counted by what was seen. One that fired exactly once, and whose generator's jobs were inserted
-- exactly once, has one row, one finished generator, and as many leaves as that yields. A second without a tick is `none`.
with leaf as (
  select payload ->> 'schedule' as schedule, (payload ->> 'tick')::timestamptz as tick, count(*) as leaves
  from (
    select payload from tasuki.job where handler = 'leaf'
    union all
    select payload from tasuki.job_archive where handler = 'leaf' and status = 'completed'
  ) as j
  group by 1, 2
),
span as (
  select schedule, min(tick) as first, max(tick) as last from tasuki.schedule_tick group by schedule
),
second as (
  select schedule, tick from span cross join generate_series(first, last, interval '1 second') as tick
)
select
  coalesce(t.verdict, 'none') as verdict,
  (select count(*) from tasuki.job_archive as a where a.id = t.job_id and a.status = 'completed') as generators,
  coalesce(l.leaves, 0) as leaves,
  count(*) as ticks
from second as s
full join tasuki.schedule_tick as t using (schedule, tick)
full join leaf as l using (schedule, tick)
group by 1, 2, 3
order by 4 desc
