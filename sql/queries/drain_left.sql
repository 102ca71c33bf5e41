-- How many jobs of these handlers wait in these queues (unless paused), and how many run there, on any host. Both are
-- counted to a thousand at most: the question is whether any is left. A job that waits for others is counted if all of
-- those run, wherever they do: if one of them waits, it is counted itself, or nobody here will ever run it.
-- Locks: nothing. Indexes: job_lease, job_held_key, job_held, job_owner, primary keys.
with working as materialized (
  select e.queue
  from unnest(%(queues)s::text[]) as e (queue)
  where not exists (select from tasuki.queue as q where q.name = e.queue and q.paused_at is not null)
),
until as materialized (
  -- Not now(), which is older than what this statement sees: a job that somebody has just let go would not be due.
  select case when %(due_only)s::boolean then clock_timestamp() else 'infinity' end as instant
)
select
  (
    select count(*)
    from (
      (
        select 1
        from working
        cross join generate_series(0, 3) as p (priority)
        cross join lateral (
          select 1
          from tasuki.job as j
          where
            j.status = 'pending'
            and j.held_by is null
            and j.queue = working.queue
            and j.priority = p.priority::smallint
            and j.scheduled_at <= (select until.instant from until)
            and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
          limit 1000
        ) as waiting_row
      )
      union all
      (
        select 1
        from working
        cross join lateral (
          select 1
          from tasuki.job as j
          where
            j.held_by = 'key'
            and j.queue = working.queue
            and j.scheduled_at <= (select until.instant from until)
            and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
          limit 1000
        ) as held_for_key
      )
      union all
      (
        -- The rescuer lets them go, now that their handler is here.
        select 1
        from tasuki.job as j
        where
          j.held_by = 'handler'
          and j.handler = any(%(known_handlers)s::text[])
          and j.queue in (select working.queue from working)
          and j.scheduled_at <= (select until.instant from until)
          and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
      )
      union all
      (
        -- Each beside the first of those that it waits for, so that it is counted once.
        select 1
        from tasuki.job as need
        cross join lateral (
          select 1
          from tasuki.dependency as d
          cross join lateral (
            select 1
            from tasuki.job as j
            where
              j.id = d.job_id
              and j.held_by = 'dependency'
              and j.queue in (select working.queue from working)
              and tasuki.fits(j.handler, j.limits, %(handlers)s::text[], %(larger)s::jsonb, %(room)s::jsonb)
              and not exists (
                select
                from tasuki.dependency as o
                join tasuki.job as other on other.id = o.needs_id
                where o.job_id = d.job_id and (other.status <> 'running' or other.id < d.needs_id)
              )
            limit 1
          ) as dependent
          where d.needs_id = need.id
          limit 1000
        ) as dependents
        where need.status = 'running' and need.has_dependents and not %(due_only)s::boolean
      )
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
        and j.handler = any(%(known_handlers)s::text[])
      limit 1000
    ) as counted
  ) as running
