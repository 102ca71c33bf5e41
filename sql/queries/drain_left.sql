-- How many jobs of these handlers wait in these queues (unless paused), and how many run there, on any host. Both are
-- counted to a thousand at most: the question is whether any is left. Indexes: job_lease, job_owner.
select
  (
    select count(*)
    from (
      select 1
      from unnest(%(queues)s::text[]) as e (queue)
      cross join generate_series(0, 3) as p (priority)
      cross join lateral (
        select 1
        from tasuki.job as j
        where
          j.status = 'pending'
          and j.held_by is null
          and j.queue = e.queue
          and j.priority = p.priority::smallint
          and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
          and (not %(due_only)s::boolean or j.scheduled_at <= now())
        limit 1000
      ) as waiting_row
      where not exists (select from tasuki.queue as q where q.name = e.queue and q.paused_at is not null)
      limit 1000
    ) as counted
  ) + (
    select count(*)
    from (
      select 1
      from tasuki.job as j
      where j.held_by = 'key' and j.queue = any(%(queues)s::text[]) and j.handler = any(%(handlers)s::text[])
      limit 1000
    ) as counted
  ) as waiting,
  (
    select count(*)
    from (
      select 1
      from tasuki.job as j
      where
        j.status = 'running'
        and j.queue = any(%(queues)s::text[])
        and (j.handler = any(%(handlers)s::text[]) or %(larger)s::jsonb ? j.handler)
      limit 1000
    ) as counted
  ) as running
