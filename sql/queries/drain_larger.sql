-- What a drained program had to leave because it asks for more memory or cores than this host has. Reads every pending row
-- of these queues.
select j.handler, count(*)
from tasuki.job as j
where
  j.status = 'pending'
  and j.held_by is null
  and j.queue = any(%(queues)s::text[])
  and (j.handler = any(%(handlers)s::text[]) or %(larger)s::jsonb ? j.handler)
  and not tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
  and (not %(due_only)s::boolean or j.scheduled_at <= now())
group by j.handler
order by j.handler
