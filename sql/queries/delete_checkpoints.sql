-- Delete the checkpoints of jobs that did not complete and ended in that time: their archive rows are about to go.
-- Locks: the rows it deletes. Indexes: job_archive_id of that day's partition, or the primary key.
delete from tasuki.checkpoint as c
using tasuki.job_archive as a
where
  a.id = c.job_id
  and a.status = any(array['failed', 'canceled'])
  and a.finished_at >= %(first)s
  and a.finished_at < %(last)s
