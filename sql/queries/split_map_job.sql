-- Try a failed job of a map again as several, each with at most so many of its items, in their order; unless that was done
-- before. Their ids, ascending, and how many items each has. The batch is open again, and the failed job counts as them.
-- Locks: the batch's row, which lock_batch.sql has locked before. Indexes: job_archive_batch, job_retry_of,
-- job_archive_retry_of.
with whole as materialized (
  select a.id, a.queue, a.handler, a.payload, a.priority, a.max_attempts, a.limits, a.key, a.batch_id
  from tasuki.job_archive as a
  where
    a.id = %(job_id)s
    and a.batch_id = %(id)s
    and a.status = 'failed'
    and jsonb_typeof(a.payload) = 'array'
    and not exists (select from tasuki.job as r where r.retry_of = a.id and r.batch_id = a.batch_id)
    and not exists (select from tasuki.job_archive as r where r.retry_of = a.id and r.batch_id = a.batch_id)
),
cut as materialized (
  select
    (item.place - 1) / %(size)s::bigint as number,
    jsonb_agg(item.payload order by item.place) as payload,
    count(*) as items
  from whole
  cross join lateral jsonb_array_elements(whole.payload) with ordinality as item (payload, place)
  group by 1
  order by 1
),
piece as materialized (
  select nextval(pg_get_serial_sequence('tasuki.job', 'id')) as id, cut.payload, cut.items from cut
),
inserted as (
  insert into tasuki.job (
    id, queue, handler, payload, priority, max_attempts, limits, key, scheduled_at, batch_id, retry_of
  )
  select
    piece.id, whole.queue, whole.handler, piece.payload, whole.priority, whole.max_attempts, whole.limits, whole.key,
    clock_timestamp(), whole.batch_id, whole.id
  from piece
  cross join whole
),
reopened as (
  update tasuki.batch
  set
    total = total + (select count(*) from piece) - 1,
    ended_at = null, completed = null, failed = null, canceled = null
  where id = (select batch_id from whole)
),
told as materialized (
  select pg_notify('tasuki_job', whole.queue || ' 0') from whole
)
select piece.id, piece.items, (select count(*) from told) as told
from piece
order by piece.id
