-- The queues whose finished jobs are kept for a shorter time than all others, and what is over for them.
-- Locks: nothing. Reads a small table.
select q.name, q.kept_from, coalesce(%(now)s::timestamptz, now()) - q.keep_for as keep_from
from tasuki.queue as q
where q.keep_for is not null
order by q.name
