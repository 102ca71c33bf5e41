-- What a drained program had to leave because it does not know the handler. Reads every pending row of these queues.
select j.handler, count(*)
from tasuki.job as j
where
  j.status = 'pending'
  and j.queue = any(%(queues)s::text[])
  and j.handler <> all(%(handlers)s::text[])
  and (not %(due_only)s::boolean or j.scheduled_at <= now())
group by j.handler
order by j.handler
