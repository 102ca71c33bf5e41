-- Which of these finished jobs were retried before, and as which job in the end. A copy ends after what it is a copy of,
-- whatever was done to the clock: earlier days than `first` are not opened.
-- Locks: nothing. Indexes: job_retry_of, job_archive_retry_of.
select made.retry_of, max(made.id)
from (
  select j.retry_of, j.id from tasuki.job as j where j.retry_of = any(%(ids)s::bigint[])
  union all
  select r.retry_of, r.id
  from tasuki.job_archive as r
  where
    r.retry_of = any(%(ids)s::bigint[])
    and (%(first)s::timestamptz is null or r.finished_at >= %(first)s::timestamptz - interval '1 hour')
) as made
group by made.retry_of
