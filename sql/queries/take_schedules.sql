-- Take these schedules for the rest of the transaction, to decide their ticks; those that another supervisor has taken, or
-- somebody has paused, are left out. A row that came back is the newest one there is.
-- Locks: the rows it returns, skipping those that somebody else holds. Index: primary key.
select
  coalesce(%(now)s::timestamptz, clock_timestamp()) as now,
  s.name, s.timetable, s.tz, s.misfire, s.misfire_after, s.starts_at, s.ends_at, s.decided_until
from tasuki.schedule as s
where s.name = any(%(names)s::text[]) and s.paused_at is null
order by s.name
for update skip locked
