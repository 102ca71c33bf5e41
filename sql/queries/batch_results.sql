-- The final rows of a batch behind a given id, in order, with their results. Locks: nothing. Index: job_archive_batch.
select a.id, a.status, a.result::text, a.error::text, a.usage ->> 'seconds'
from tasuki.job_archive as a
where a.batch_id = %(id)s and a.id = any(%(ids)s::bigint[])
