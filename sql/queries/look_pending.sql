-- The jobs that wait, in the order of their ids, of one handler or of all. Locks: nothing. Index: none, tests have few jobs.
select j.id, j.handler, j.queue, j.payload::text, j.priority, j.max_attempts, j.scheduled_at, j.key
from tasuki.job as j
where j.status = 'pending' and (%(handler)s::text is null or j.handler = %(handler)s::text)
order by j.id
