-- How many jobs of the demo's queue are left, by batch: the jobs of one batch were inserted by one transaction, so that
-- they share their created_at. With how many of them are running.
-- Locks: none. Index: job_lease for the pending ones, job_owner for the running ones.
select left_over.created_at, count(*) as unfinished, count(*) filter (where left_over.is_running) as running
from (
  select job.created_at, false as is_running
  from tasuki.job
  where job.queue = %(queue)s and job.status = 'pending' and job.held_by is null
  union all
  select job.created_at, true
  from tasuki.job
  where job.queue = %(queue)s and job.status = 'running'
) as left_over
group by left_over.created_at
order by left_over.created_at
