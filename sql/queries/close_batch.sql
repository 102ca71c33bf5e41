-- End batches that are over. For each: how many of its jobs are live still (to a thousand), null if it has ended before.
-- Locks: the rows of those that end. Indexes: job_batch, job_archive_batch.
select b.id, tasuki.close_batch(b.id)
from unnest(%(ids)s::bigint[]) as b (id)
