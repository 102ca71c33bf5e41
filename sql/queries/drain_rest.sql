-- What a drained program has to leave, each job once, by the first reason that holds: nobody here knows its handler, its
-- queue is paused, it asks for more memory or cores than this host has, or it waits for another job, which is left itself or
-- none of this program's: one such job is named. What came to be done since it was asked whether anything waits is 'waiting'.
-- With `due_only` only what is due counts; a job that waits for others is not due before those have ended.
-- Locks: nothing. Reads every pending row of these queues.
with rest as (
  select
    j.id,
    j.queue,
    j.handler,
    case
      when j.handler <> all(%(known_handlers)s::text[]) then 'unknown'
      when j.status = 'running' then 'waiting'
      when q.paused_at is not null then 'paused'
      when not tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb) then 'larger'
      when j.held_by = 'dependency' then 'dependent'
      else 'waiting'
    end as reason
  from tasuki.job as j
  left join tasuki.queue as q on q.name = j.queue
  where
    j.queue = any(%(queues)s::text[])
    and (j.status = 'pending' or j.handler = any(%(known_handlers)s::text[]))
    and (
      not %(due_only)s::boolean
      or j.status = 'running'
      or (j.scheduled_at <= clock_timestamp() and j.held_by is distinct from 'dependency')
    )
),
counted as (
  select
    rest.reason,
    case rest.reason when 'paused' then rest.queue else rest.handler end as name,
    count(*) as jobs,
    min(rest.id) as example
  from rest
  group by 1, 2
)
select
  counted.reason,
  counted.name,
  counted.jobs,
  case counted.reason when 'dependent' then (
    select min(d.needs_id) from tasuki.dependency as d where d.job_id = counted.example
  ) end as needs_id
from counted
order by counted.reason, counted.name
