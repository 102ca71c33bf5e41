-- Remember the handlers of an application for producers without its code; the newest start wins. The names come sorted.
-- Locks: the rows it writes. Index: primary key.
insert into tasuki.handler as h (name, queue, priority, max_attempts, options, version, last_seen)
select n.name, n.queue, n.priority, n.max_attempts, n.options::jsonb, %(version)s, clock_timestamp()
from unnest(
  %(names)s::text[], %(queues)s::text[], %(priorities)s::smallint[], %(max_attempts)s::integer[], %(options)s::text[]
) as n (name, queue, priority, max_attempts, options)
on conflict (name) do update
set
  queue = excluded.queue,
  priority = excluded.priority,
  max_attempts = excluded.max_attempts,
  options = excluded.options,
  version = excluded.version,
  last_seen = excluded.last_seen
