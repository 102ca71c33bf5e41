-- The schedules that a supervisor has to mind: its application's, and those stored at run time for handlers that it knows.
-- With them the database's clock, also when there are none. Locks: nothing. Reads the whole table.
select
  clock_timestamp() as now,
  s.name, s.timetable, s.tz, s.misfire, s.misfire_after, s.starts_at, s.ends_at, s.decided_until
from (select) as one
left join tasuki.schedule as s
  on s.paused_at is null
  and case s.source when 'app' then s.name = any(%(names)s::text[]) else s.handler = any(%(handlers)s::text[]) end
order by s.name
