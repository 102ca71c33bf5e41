-- How the jobs of these id ranges ended: for each final state how many, and the first of them with its error.
-- Locks: nothing. Index: job_archive_id (one range for each).
select
  job.status,
  count(*) as jobs,
  min(job.id) as first_id,
  (array_agg(job.error order by job.id))[1] ->> 'type' as error_type,
  (array_agg(job.error order by job.id))[1] ->> 'message' as error_message
from unnest(%(firsts)s::bigint[], %(lasts)s::bigint[]) as r (first_id, last_id)
cross join lateral (
  select a.id, a.status, case when a.status <> 'completed' then a.error end as error
  from tasuki.job_archive as a
  where a.id between r.first_id and r.last_id
) as job
group by job.status
