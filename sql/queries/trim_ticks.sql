-- Drop all but the newest ticks of each schedule, at most so many at once; returns how many went. What was decided stays
-- decided: the schedule's own row says up to when. Locks: the rows it deletes. Index: primary key.
with gone as (
  delete from tasuki.schedule_tick
  where (schedule, tick) in (
    select t.schedule, t.tick
    from tasuki.schedule as s
    cross join lateral (
      select o.tick
      from tasuki.schedule_tick as o
      where o.schedule = s.name
      order by o.tick desc
      offset %(keep)s
      limit 1
    ) as edge
    join tasuki.schedule_tick as t on t.schedule = s.name and t.tick <= edge.tick
    limit %(most)s
  )
  returning 1
)
select count(*) from gone
