-- What keeps dead rows from being removed, the oldest first: open transactions, prepared ones, replication slots and standbys.
-- Locks: nothing. Reads statistics.
select holder.kind, holder.name, holder.detail, extract(epoch from clock_timestamp() - holder.since)::float8 as seconds, holder.xids
from (
  select
    'transaction' as kind,
    'pid ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '') as name,
    a.state || coalesce(', ' || a.usename, '') || coalesce(' from ' || host(a.client_addr), '') as detail,
    a.xact_start as since,
    greatest(age(a.backend_xmin), age(a.backend_xid)) as xids
  from pg_stat_activity as a
  where
    a.xact_start is not null
    and a.datname = current_database()
    and a.pid <> pg_backend_pid()
    and a.backend_type = 'client backend'
  union all
  select 'prepared', p.gid, 'by ' || p.owner, p.prepared, age(p.transaction)
  from pg_prepared_xacts as p
  where p.database = current_database()
  union all
  select
    'slot', s.slot_name::text, case when s.active then 'active' else 'not in use' end, null,
    greatest(age(s.xmin), age(s.catalog_xmin))
  from pg_replication_slots as s
  where s.xmin is not null or s.catalog_xmin is not null or not s.active
  union all
  select 'standby', coalesce(nullif(r.application_name, ''), r.pid::text), r.state, null, age(r.backend_xmin)
  from pg_stat_replication as r
  where r.backend_xmin is not null
) as holder
order by seconds desc nulls last, xids desc nulls last
