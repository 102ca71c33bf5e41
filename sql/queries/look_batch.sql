-- A batch as it stands; its numbers are counted while it is open. Locks: nothing. Indexes: job_batch, job_archive_batch.
select
  b.id, b.name, b.created_at, b.sealed_at is not null as is_sealed, b.total, b.ended_at, live.pending, live.running,
  coalesce(b.completed, final.completed) as completed, coalesce(b.failed, final.failed) as failed,
  coalesce(b.canceled, final.canceled) as canceled, b.fired, b.state::text
from tasuki.batch as b
cross join lateral (
  select
    count(*) filter (where j.status = 'pending') as pending,
    count(*) filter (where j.status = 'running') as running
  from tasuki.job as j
  where j.batch_id = b.id
) as live
cross join lateral (
  select
    count(*) filter (where a.status = 'completed') as completed,
    count(*) filter (where a.status = 'failed') as failed,
    count(*) filter (where a.status = 'canceled') as canceled
  from tasuki.job_archive as a
  where
    b.ended_at is null
    and a.batch_id = b.id
    and (
      a.status = 'completed'
      or not (
        exists (select from tasuki.job as r where r.retry_of = a.id and r.batch_id = a.batch_id)
        or exists (select from tasuki.job_archive as r where r.retry_of = a.id and r.batch_id = a.batch_id)
      )
    )
) as final
where b.id = %(id)s
