-- The partitions for single days, whether they (still) belong to their table or not. `is_marked`: retention had begun to
-- drop it. `rows` is the planner's estimate.
-- Locks: nothing. Reads the catalog only.
select
  coalesce(parent.relname, substring(c.relname from '^(.*)_[0-9]{8}$'))::text as parent,
  c.relname::text as name,
  right(c.relname, 8) as day,
  i.inhrelid is not null as is_attached,
  coalesce(i.inhdetachpending, false) as is_detaching,
  coalesce(obj_description(c.oid, 'pg_class') = %(mark)s, false) as is_marked,
  greatest(c.reltuples, 0)::bigint as rows,
  pg_relation_size(c.oid) / current_setting('block_size')::integer as blocks,
  pg_total_relation_size(c.oid) as bytes,
  coalesce(%(now)s::timestamptz, now()) as now
from pg_class as c
left join pg_inherits as i on i.inhrelid = c.oid
left join pg_class as parent on parent.oid = i.inhparent
where
  c.relnamespace = 'tasuki'::regnamespace
  and c.relkind = 'r'
  and c.relname ~ '^(job_archive_completed|job_archive_failed|attempt)_[0-9]{8}$'
order by right(c.relname, 8), c.relname
