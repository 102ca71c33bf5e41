-- Delete batches that ended so long ago that none of their jobs is kept any more. Returns how many there were, at most `most`.
-- Locks: their rows, skipping those that somebody else holds. Index: batch_ended.
with over as materialized (
  select b.id
  from tasuki.batch as b
  where b.ended_at < coalesce(%(now)s::timestamptz, now()) - %(seconds)s * interval '1 second'
  order by b.ended_at
  limit %(most)s
  for update skip locked
),
gone as (
  delete from tasuki.batch where id = any(array(select id from over))
)
select count(*) from over
