-- What can be asked about the server in one go: version, clock, settings that decide whether jobs survive a crash, and how full
-- some things are. A role that may not read all of pg_stat_activity sees less.
-- Locks: nothing. Reads the catalog and statistics.
select
  current_setting('server_version') as version,
  current_setting('server_version_num')::integer as version_number,
  clock_timestamp() as now,
  pg_is_in_recovery() as is_standby,
  current_setting('fsync') = 'on' as has_fsync,
  current_setting('full_page_writes') = 'on' as has_full_page_writes,
  current_setting('autovacuum')::boolean and current_setting('track_counts')::boolean as has_autovacuum,
  current_setting('synchronous_commit') as synchronous_commit,
  pg_notification_queue_usage() as notification_usage,
  (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
  current_setting('max_connections')::integer as max_connections,
  pg_has_role('pg_read_all_stats', 'usage') as sees_everything,
  array(
    select c.relname::text
    from pg_class as c
    where
      c.relnamespace = 'tasuki'::regnamespace
      and c.relpersistence = 'u'
      and c.relkind = 'r'
      and c.relname <> 'waiter' -- on purpose: nothing is lost with it
    order by 1
  ) as unlogged
