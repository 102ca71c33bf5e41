-- What each queue holds: due, later, held and running jobs, how long the oldest due one waits, and since when it is paused.
-- Locks: nothing. Reads the whole live table, which holds unfinished work only.
select coalesce(j.queue, q.name) as queue,
  coalesce(j.due, 0) as due,
  coalesce(j.scheduled, 0) as scheduled,
  coalesce(j.held, 0) as held,
  coalesce(j.running, 0) as running,
  coalesce(j.oldest_due, 0) as oldest_due,
  q.paused_at
from (
  select job.queue,
    count(*) filter (where job.status = 'pending' and job.held_by is null and job.scheduled_at <= instant.now) as due,
    count(*) filter (where job.status = 'pending' and job.held_by is null and job.scheduled_at > instant.now) as scheduled,
    count(*) filter (where job.held_by is not null) as held,
    count(*) filter (where job.status = 'running') as running,
    extract(epoch from max(instant.now - job.scheduled_at)
      filter (where job.status = 'pending' and job.held_by is null and job.scheduled_at <= instant.now))::float8 as oldest_due
  from tasuki.job as job
  cross join (select coalesce(%(now)s::timestamptz, now()) as now) as instant
  group by job.queue
) as j
full join (select * from tasuki.queue where paused_at is not null) as q on q.name = j.queue
order by 1
