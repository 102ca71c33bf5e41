-- Who holds the lock of that name. Locks: nothing. Index: none.
select a.application_name, a.client_addr::text, a.backend_start, a.pid
from pg_locks as l
join pg_stat_activity as a on a.pid = l.pid
where
  l.locktype = 'advisory'
  and l.granted
  and l.classid = 7235422::oid
  and l.objid::bigint = hashtext(%(name)s)::bigint & 4294967295
  and l.objsubid = 2
  and l.database = (select d.oid from pg_database as d where d.datname = current_database())
