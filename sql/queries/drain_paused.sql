-- What a drained program had to leave because the queue is paused. Reads every pending row of the paused ones.
select j.queue, count(*)
from tasuki.job as j
where
  j.status = 'pending'
  and j.queue in (select q.name from tasuki.queue as q where q.name = any(%(queues)s::text[]) and q.paused_at is not null)
  and j.handler = any(%(handlers)s::text[])
  and (not %(due_only)s::boolean or j.scheduled_at <= now())
group by j.queue
order by j.queue
