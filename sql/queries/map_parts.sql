-- The jobs of a map in the order of their ids: how many items each has, and which it tries again.
-- Locks: nothing. Indexes: job_batch, job_archive_batch.
select parts.id, parts.items, parts.retry_of
from (
  select j.id, case jsonb_typeof(j.payload) when 'array' then jsonb_array_length(j.payload) else 1 end as items, j.retry_of
  from tasuki.job as j
  where j.batch_id = %(id)s
  union all
  select a.id, case jsonb_typeof(a.payload) when 'array' then jsonb_array_length(a.payload) else 1 end, a.retry_of
  from tasuki.job_archive as a
  where a.batch_id = %(id)s
) as parts
order by parts.id
