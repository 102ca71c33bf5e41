-- The ids of the jobs in the demo's queue that are not done, to cancel them.
-- Locks: none. Index: job_lease for the pending ones, job_owner for the running ones.
select job.id
from tasuki.job
where job.queue = %(queue)s and job.status = 'pending' and job.held_by is null
union all
select job.id
from tasuki.job
where job.queue = %(queue)s and job.status = 'running'
