-- Delete a queue's finished jobs of a time, out of a range of blocks of one day's partition, with their history and
-- checkpoints. Blocks, because there is no index on the time: each is read once, and no statement takes long.
-- Locks: the rows it deletes. Indexes: none for the archive (TID range), attempt_job, primary key of the checkpoints.
with gone as (
  delete from tasuki.job_archive as a
  where
    a.queue = %(queue)s
    and a.status = any(%(states)s::text[])
    and a.finished_at >= %(first)s
    and a.finished_at < %(last)s
    and a.ctid >= format('(%%s,0)', %(first_block)s::bigint)::tid
    and a.ctid < format('(%%s,0)', %(last_block)s::bigint)::tid
  returning a.id
),
attempts as (
  delete from tasuki.attempt where job_id = any(array(select id from gone))
),
checkpoints as (
  delete from tasuki.checkpoint where job_id = any(array(select id from gone))
)
select count(*) from gone
