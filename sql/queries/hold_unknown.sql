-- Hold jobs at the head of each queue whose handler nobody has known for `grace` seconds, so that leasing does not walk
-- over them again and again. Only the first `most` due rows of each queue and priority are looked at: rows behind them slow
-- nobody down. Locks: the rows it holds, skipping those that somebody else locked. Index: job_lease.
with known as materialized (
  select h.name from tasuki.handler as h where h.last_seen > now() - %(grace)s * interval '1 second'
  union
  select unnest(s.handlers) from tasuki.supervisor as s where s.seen_at > now() - %(grace)s * interval '1 second'
),
head as materialized (
  select row_at_head.id, row_at_head.handler, row_at_head.created_at
  from unnest(%(queues)s::text[]) as e (queue)
  cross join generate_series(0, 3) as p (priority)
  cross join lateral (
    select j.id, j.handler, j.created_at
    from tasuki.job as j
    where
      j.status = 'pending'
      and j.held_by is null
      and j.queue = e.queue
      and j.priority = p.priority::smallint
      and j.scheduled_at <= now()
    order by j.scheduled_at, j.id
    limit %(most)s
  ) as row_at_head
),
unknown as materialized (
  select head.id
  from head
  where head.created_at < now() - %(grace)s * interval '1 second' and head.handler not in (select name from known)
  order by head.id
  limit %(most)s
),
locked as materialized (
  select held.id
  from unknown
  cross join lateral (
    select j.id
    from tasuki.job as j
    where j.id = unknown.id and j.status = 'pending' and j.held_by is null
    limit 1
    for no key update skip locked
  ) as held
),
marked as (
  update tasuki.job set held_by = 'handler' where id = any(array(select id from locked))
)
select count(*) from locked
