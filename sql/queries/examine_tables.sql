-- How many dead rows the tables have that change all the time, and when they were last vacuumed.
-- Locks: nothing. Reads statistics.
select
  s.relname::text as name,
  s.n_live_tup as live,
  s.n_dead_tup as dead,
  pg_total_relation_size(s.relid) as bytes,
  extract(epoch from clock_timestamp() - greatest(s.last_vacuum, s.last_autovacuum))::float8 as vacuumed_ago
from pg_stat_user_tables as s
where s.schemaname = 'tasuki' and s.relname = any(array['job', 'supervisor', 'unique_key', 'checkpoint', 'schedule', 'batch'])
order by s.n_dead_tup desc
