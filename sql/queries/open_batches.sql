-- Batches that are sealed, not ended, and have no live job: whoever ended the last one died before it closed them, or
-- somebody canceled it. Locks: nothing. Indexes: batch_open, job_batch.
select b.id
from tasuki.batch as b
where
  b.ended_at is null
  and b.sealed_at is not null
  and not exists (select from tasuki.job as j where j.batch_id = b.id)
order by b.id
limit %(most)s
